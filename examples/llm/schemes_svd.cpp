/// Caches of latents.
#include <xquant/projection/joint_svd.hpp>

#include "library_schemes.hpp"

namespace llm {
namespace {

namespace preset = xquant::preset;

template <unsigned Group>
constexpr LibraryScheme grouped[] = {
    {"svd_joint4", Group, make_library_cache<preset::split_svd<4, Group>>},
    {"svd_joint3", Group, make_library_cache<preset::split_svd<3, Group>>},
    {"svd_joint2", Group, make_library_cache<preset::split_svd<2, Group>>},
    {"svd_head4", Group, make_library_cache<preset::head_svd<4, Group>>},
    {"svd_head3", Group, make_library_cache<preset::head_svd<3, Group>>},
    {"svd_head2", Group, make_library_cache<preset::head_svd<2, Group>>},
    {"cl_svd4", Group, make_library_cache<preset::cross_layer_svd<4, Group>>},
    {"cl_svd3", Group, make_library_cache<preset::cross_layer_svd<3, Group>>},
    {"cl_svd2", Group, make_library_cache<preset::cross_layer_svd<2, Group>>},
    {"cl_svd_rot4", Group, make_library_cache<preset::cross_layer_rotated_svd<4, Group>>},
    {"cl_svd_rot3", Group, make_library_cache<preset::cross_layer_rotated_svd<3, Group>>},
    {"cl_svd_rot2", Group, make_library_cache<preset::cross_layer_rotated_svd<2, Group>>},
};

}  // namespace

void add_svd_schemes(std::vector<LibraryScheme>& all) {
    all.insert(all.end(), std::begin(grouped<128>), std::end(grouped<128>));
    all.insert(all.end(), std::begin(grouped<64>), std::end(grouped<64>));
    all.insert(all.end(), std::begin(grouped<32>), std::end(grouped<32>));
}

}  // namespace llm
