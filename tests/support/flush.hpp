/// A processor that takes subnormal floats for 0, for as long as an object lives.
#pragma once

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace test {

class FlushSubnormals {
public:
#if defined(__SSE2__)
    FlushSubnormals() noexcept : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040U); }  // FTZ and DAZ
    ~FlushSubnormals() { _mm_setcsr(before_); }
#else
    FlushSubnormals() noexcept = default;
#endif
    FlushSubnormals(const FlushSubnormals&) = delete;
    FlushSubnormals& operator=(const FlushSubnormals&) = delete;

    /// Whether the processor has such a setting, and does what it says.
    static bool works() noexcept {
        const FlushSubnormals flush;
        volatile float small = 1e-40F;
        volatile float twice = small * 2.0F;
        return twice == 0.0F;
    }

private:
    unsigned before_ = 0;
};

}  // namespace test
