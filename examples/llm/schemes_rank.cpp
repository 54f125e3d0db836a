/// Latents cut to the rank that holds a share of the energy of W_k and W_v.
#include <xquant/projection/svd.hpp>

#include "library_schemes.hpp"

namespace llm {
namespace {

namespace xq = xquant;

template <class Projection>
using Cut = xq::XCache<xq::Quantizer<4>, xq::Layout<xq::PerChannel, xq::PerToken>, xq::CrossLayer<xq::Off>,
                       xq::Projection<Projection>>;
template <unsigned PerMille>
constexpr auto joint = make_library_cache<Cut<xq::SplitSvdOf<xq::EnergyShare<PerMille>>>>;
template <unsigned PerMille>
constexpr auto head = make_library_cache<Cut<xq::HeadSvdOf<xq::EnergyShare<PerMille>>>>;

constexpr LibraryScheme cut[] = {
    {"svd_joint4_e999", 128, joint<999>}, {"svd_joint4_e995", 128, joint<995>}, {"svd_joint4_e990", 128, joint<990>},
    {"svd_joint4_e950", 128, joint<950>}, {"svd_joint4_e900", 128, joint<900>}, {"svd_head4_e999", 128, head<999>},
    {"svd_head4_e995", 128, head<995>},   {"svd_head4_e990", 128, head<990>},   {"svd_head4_e950", 128, head<950>},
    {"svd_head4_e900", 128, head<900>},
};

}  // namespace

void add_rank_schemes(std::vector<LibraryScheme>& all) { all.insert(all.end(), std::begin(cut), std::end(cut)); }

}  // namespace llm
