/// A processor that takes subnormal floats for 0, for as long as an object lives.
#pragma once

#include <cstdint>

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace test {

class FlushSubnormals {
public:
    FlushSubnormals() noexcept : before_(read()) { write(before_ | flushes); }
    ~FlushSubnormals() { write(before_); }
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
#if defined(__SSE2__)
    static constexpr std::uint64_t flushes = 0x8040;  // MXCSR: FTZ and DAZ
    static std::uint64_t read() noexcept { return _mm_getcsr(); }
    static void write(std::uint64_t value) noexcept { _mm_setcsr(static_cast<unsigned>(value)); }
#elif defined(__aarch64__)
    static constexpr std::uint64_t flushes = 0x1080000;  // FPCR: FZ and FZ16
    static std::uint64_t read() noexcept {
        std::uint64_t value;
        asm volatile("mrs %0, fpcr" : "=r"(value) : : "memory");
        return value;
    }
    static void write(std::uint64_t value) noexcept { asm volatile("msr fpcr, %0" : : "r"(value) : "memory"); }
#else
    static constexpr std::uint64_t flushes = 0;
    static std::uint64_t read() noexcept { return 0; }
    static void write(std::uint64_t) noexcept {}
#endif

    std::uint64_t before_;
};

}  // namespace test
