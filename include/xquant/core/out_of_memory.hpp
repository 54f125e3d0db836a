// Work that may be left undone where memory runs out.
#pragma once

#include <new>

#include <xquant/error.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// Whether the work was done; false where memory, or a budget, ran out.
template <class F>
bool fits_into_memory(F&& work) {
#if XQUANT_HAS_EXCEPTIONS
    try {
        work();
        return true;
    } catch (const std::bad_alloc&) {
        return false;
    } catch (const budget_error&) {
        return false;
    }
#else
    work();
    return true;
#endif
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
