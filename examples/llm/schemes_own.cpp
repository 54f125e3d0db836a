/// Schemes of this engine's own: latents cut to the rank that holds a share of the energy of W_k and W_v, and KIVI's
/// layout with keys rounded for what queries see of them, as in SQuat (arXiv 2503.24358).
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

/// Keys themselves, before RoPE, rounded with feedback for the metric of the queries: no basis is changed.
template <unsigned Bits>
void add_fed_back_keys() {
    using Cache =
        xq::XCache<xq::PerStream<xq::FedBack<Bits>, xq::Uniform<Bits>>, xq::Layout<xq::PerChannel, xq::PerToken>,
                   xq::CrossLayer<xq::Off>, xq::Projection<xq::KeyValue<xq::BeforeRope>>>;
    xq::register_scheme<Cache>(fmt::format("squat{}", Bits), "kivi, K rounded for what queries see of it (like SQuat)",
                               xq::Needs::statistics);
}

}  // namespace

void register_own_schemes() {
    add_shares<999, 995, 990, 950, 900>();
    add_fed_back_keys<4>();
    add_fed_back_keys<3>();
    add_fed_back_keys<2>();
}

}  // namespace llm
