#include <type_traits>

#include "caches_of.hpp"
#include "compiled/best.hpp"

namespace bench {
namespace {

template <class Tag>
Backend unless_scalar() {
    if constexpr (std::is_same_v<Tag, xq::backend::scalar>) {
        return {Tag::name, {}};
    } else {
        return {Tag::name, schemes_of<Tag>()};
    }
}

}  // namespace

Backend best_backend() { return unless_scalar<xq::backend::best>(); }

}  // namespace bench
