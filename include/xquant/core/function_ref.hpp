// A reference to a function object, for calls that are compiled once whatever they are given.
#pragma once

#include <memory>
#include <type_traits>
#include <utility>

#include <xquant/config.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

template <class Signature>
class FunctionRef;

/// Does not own the function, which has to outlive it.
template <class Result, class... Arguments>
class FunctionRef<Result(Arguments...)> {
public:
    template <class F>
        requires(!std::is_same_v<std::remove_cvref_t<F>, FunctionRef> &&
                 std::is_invocable_r_v<Result, F&, Arguments...>)
    FunctionRef(F&& function)
    noexcept  // NOLINT: a reference to it is meant
        : function_(const_cast<void*>(static_cast<const void*>(std::addressof(function)))),
          call_([](void* of, Arguments... arguments) -> Result {
              return (*static_cast<std::remove_reference_t<F>*>(of))(std::forward<Arguments>(arguments)...);
          }) {}

    Result operator()(Arguments... arguments) const { return call_(function_, std::forward<Arguments>(arguments)...); }

private:
    void* function_;
    Result (*call_)(void*, Arguments...);
};

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
