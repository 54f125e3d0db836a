/// Latents cut to the rank that holds a share of the energy of W_k and W_v: schemes of this engine's own.
#include <xquant/registry_svd.hpp>

#include <fmt/format.h>

#include "schemes.hpp"

namespace llm {
namespace {

namespace xq = xquant;

template <class Projection>
using Cut = xq::XCache<xq::Uniform<4>, xq::Layout<xq::PerChannel, xq::PerToken>, xq::CrossLayer<xq::Off>,
                       xq::Projection<Projection>>;

template <unsigned... PerMille>
void add_shares() {
    const auto what = [](unsigned share) {
        return fmt::format("latents, cut to the rank that holds {:.1f} % of W's energy", share / 10.0);
    };
    (xq::register_scheme<Cut<xq::SplitSvdOf<xq::EnergyShare<PerMille>>>>(fmt::format("svd_joint4_e{}", PerMille),
                                                                         what(PerMille)),
     ...);
    (xq::register_scheme<Cut<xq::HeadSvdOf<xq::EnergyShare<PerMille>>>>(fmt::format("svd_head4_e{}", PerMille),
                                                                        what(PerMille)),
     ...);
}

}  // namespace

void register_rank_schemes() { add_shares<999, 995, 990, 950, 900>(); }

}  // namespace llm
