// The types by which a backend takes part in a cache: its Step, and the State that it keeps beside the core.
#pragma once

#include <span>

#include <xquant/core/step.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// Of backends whose pages lie in the processor's memory; backends on a device specialize it.
template <class Backend>
struct BackendParts {
    using Step = detail::Step<Backend>;
    static constexpr bool on_device = false;

    /// What a cache keeps beside the core: nothing.
    struct State {
        State(Core&, const Options&) noexcept {}
        void prepare(const Core&) noexcept {}
    };
    static Step begin(Core& core, State&, std::span<const StepPart> parts) { return Step(core, parts); }
    static void seal(Core& core, State&, Slot& slot) { seal_sequence(Backend{}, core, slot); }
};

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
