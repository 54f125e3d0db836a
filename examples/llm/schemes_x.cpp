/// Caches of K and V, and of X.
#include "library_schemes.hpp"

namespace llm {
namespace {

namespace preset = xquant::preset;

template <unsigned Group>
constexpr LibraryScheme grouped[] = {
    {"kivi4", Group, make_library_cache<preset::kivi<4, Group>>},
    {"kivi3", Group, make_library_cache<preset::kivi<3, Group>>},
    {"kivi2", Group, make_library_cache<preset::kivi<2, Group>>},
    {"x4", Group, make_library_cache<preset::plain_x<4, Group>>},
    {"x3", Group, make_library_cache<preset::plain_x<3, Group>>},
    {"x2", Group, make_library_cache<preset::plain_x<2, Group>>},
    {"x4_rot", Group, make_library_cache<preset::rotated_x<4, Group>>},
    {"x3_rot", Group, make_library_cache<preset::rotated_x<3, Group>>},
    {"x2_rot", Group, make_library_cache<preset::rotated_x<2, Group>>},
    {"x4_rot_mean", Group, make_library_cache<preset::rotated_x<4, Group>>, Needs::mean},
    {"x3_rot_mean", Group, make_library_cache<preset::rotated_x<3, Group>>, Needs::mean},
    {"x2_rot_mean", Group, make_library_cache<preset::rotated_x<2, Group>>, Needs::mean},
    {"cl_x4", Group, make_library_cache<preset::cross_layer_x<4, Group>>},
    {"cl_x3", Group, make_library_cache<preset::cross_layer_x<3, Group>>},
    {"cl_x2", Group, make_library_cache<preset::cross_layer_x<2, Group>>},
    {"cl_x_rot4", Group, make_library_cache<preset::cross_layer_rotated_x<4, Group>>},
    {"cl_x_rot3", Group, make_library_cache<preset::cross_layer_rotated_x<3, Group>>},
    {"cl_x_rot2", Group, make_library_cache<preset::cross_layer_rotated_x<2, Group>>},
};

constexpr LibraryScheme own_blocks[] = {
    {"f16", 0, make_library_cache<preset::f16_kv>},
    {"q8_0", 0, make_library_cache<preset::q8_0>},
    {"q4_0", 0, make_library_cache<preset::q4_0>},
    {"q4_0_hadamard", 0, make_library_cache<preset::q4_0_hadamard>},
    {"kvquant4", 0, make_library_cache<preset::kvquant<4>>, Needs::rows},
    {"kvquant3", 0, make_library_cache<preset::kvquant<3>>, Needs::rows},
    {"kvquant2", 0, make_library_cache<preset::kvquant<2>>, Needs::rows},
    {"nf4", 0, make_library_cache<preset::nf4>},
    {"kv8", 0, make_library_cache<preset::kv<8>>},
    {"kv4", 0, make_library_cache<preset::kv<4>>},
};

}  // namespace

void add_key_value_and_x_schemes(std::vector<LibraryScheme>& all) {
    all.insert(all.end(), std::begin(own_blocks), std::end(own_blocks));
    all.insert(all.end(), std::begin(grouped<128>), std::end(grouped<128>));
    all.insert(all.end(), std::begin(grouped<64>), std::end(grouped<64>));
    all.insert(all.end(), std::begin(grouped<32>), std::end(grouped<32>));
}

}  // namespace llm
