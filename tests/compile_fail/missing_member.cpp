// Policies of each slot. -DWITHOUT_<member> leaves one member out, -DWITHOUT_GOOD_<member> has it wrong.
#include <xquant/xcache.hpp>

using namespace xquant;

struct MyQuantizer {
#if defined(WITHOUT_GOOD_BITS)
    static constexpr unsigned bits = 9;
#elif !defined(WITHOUT_BITS)
    static constexpr unsigned bits = 4;
#endif
#if defined(WITHOUT_GOOD_GROUP)
    static constexpr unsigned group = 4;
#elif !defined(WITHOUT_GROUP)
    static constexpr unsigned group = 64;
#endif
#ifndef WITHOUT_STORES_ZERO
    static constexpr bool stores_zero = false;
#endif
#ifndef WITHOUT_ZERO_CODE
    static constexpr float zero_code = 8;
#endif
#ifndef WITHOUT_ENCODE
    static GroupScale encode(std::span<const float>, std::span<std::uint8_t>) noexcept { return {}; }
#endif
#if defined(WITHOUT_GOOD_OUTLIERS)
    static constexpr unsigned outliers = 256;
#else
    static constexpr unsigned outliers = 1;
#endif
#ifndef WITHOUT_CHOOSE
    static void choose(std::span<const float>, std::span<std::uint8_t>) noexcept {}
#endif
};

struct MyAxis {
#ifndef WITHOUT_GROUP_SHAPE
    static constexpr GroupShape group_shape(unsigned group) noexcept { return {1, group}; }
#endif
};

struct MyProjection {
#ifndef WITHOUT_STREAMS
    static constexpr std::size_t streams = 1;
#endif
#if defined(WITHOUT_GOOD_FOOTPRINT)
    static LayerFootprint<2> footprint(const Layer&) { return {}; }
#elif !defined(WITHOUT_FOOTPRINT)
    static LayerFootprint<1> footprint(const Layer&) { return {}; }
#endif
#ifndef WITHOUT_PREPARE
    static LayerPlan prepare(const Layer&) { return {}; }
#endif
    using base = Plain;
#ifndef WITHOUT_BELOW
    using below = Plain;
#endif
#ifndef WITHOUT_DIFFERENCE_FOOTPRINT
    static LayerFootprint<1> difference_footprint(const Layer&) { return {}; }
#endif
#ifndef WITHOUT_PREPARE_DIFFERENCE
    static LayerPlan prepare_difference(const Layer&) { return {}; }
#endif
};

std::size_t bytes(const Model& model) {
    return XCache<MyQuantizer, Layout<MyAxis>, CrossLayer<Delta>, Projection<MyProjection>>::predict(model, {}, 1)
        .stored();
}
