// A GPU in plain C++: the specification of what the kernels of backend/cuda ask of a machine, and the one on which they
// are tested where there is no GPU. Operations are those of backend/cuda/machine.cuh, which says what they mean.
//
// A block's warps run one after another up to the next barrier, forwards or backwards, lanes in order: what a kernel
// forgets to wait for shows in one of the two directions. Copies in the background happen when they are waited for, no
// sooner.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include <xquant/backend/cuda/machine/fragments.cuh>
#include <xquant/types.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {

struct emulated_gpu {
    static constexpr const char* name = "emulated_gpu";
#if defined(__SANITIZE_ADDRESS__)
    static constexpr std::size_t largest_head = 64;  // the others take a compiler minutes, and test the same code
#else
    static constexpr std::size_t largest_head = 256;
#endif

    template <class T>
    struct Lanes {
        std::array<T, gpu::lanes> at{};
        T& operator[](unsigned lane) noexcept { return at[lane]; }
        const T& operator[](unsigned lane) const noexcept { return at[lane]; }
    };

    class Warp {
    public:
        explicit Warp(unsigned number) noexcept : index(number) {}
        unsigned index;

        template <class F>
        void each(F&& f) const {
            for (unsigned lane = 0; lane < gpu::lanes; ++lane) f(lane);
        }
        void copy(void* to, const void* from) { copies_.push_back({to, from}); }
        void wait_for_copies() {
            for (const Copy& copy : copies_) std::memcpy(copy.to, copy.from, 16);
            copies_.clear();
        }
        void sync() const noexcept {}

        void multiply(Lanes<float> (&c)[4], const Lanes<std::uint32_t> (&a)[4],
                      const Lanes<std::uint32_t> (&b)[2]) const noexcept {
            float left[16][16], right[16][8];
            for (unsigned lane = 0; lane < gpu::lanes; ++lane) {
                for (unsigned h = 0; h < 2; ++h) {
                    for (unsigned i = 0; i < 4; ++i) {
                        const gpu::Element at = gpu::element_a(lane, i, h);
                        left[at.row][at.column] = half_of(a[i][lane], h);
                    }
                    for (unsigned i = 0; i < 2; ++i) {
                        const gpu::Element at = gpu::element_b(lane, i, h);
                        right[at.row][at.column] = half_of(b[i][lane], h);
                    }
                }
            }
            float product[16][8] = {};
            for (unsigned row = 0; row < 16; ++row) {
                for (unsigned k = 0; k < 16; ++k) {
                    for (unsigned column = 0; column < 8; ++column)
                        product[row][column] += left[row][k] * right[k][column];
                }
            }
            for (unsigned lane = 0; lane < gpu::lanes; ++lane) {
                for (unsigned i = 0; i < 4; ++i) {
                    const gpu::Element at = gpu::element_c(lane, i);
                    c[i][lane] += product[at.row][at.column];
                }
            }
        }

        void multiply(Lanes<std::int32_t> (&c)[4], const Lanes<std::uint32_t> (&a)[4],
                      const Lanes<std::uint32_t> (&b)[2]) const noexcept {
            std::int32_t left[16][32], right[32][8];
            for (unsigned lane = 0; lane < gpu::lanes; ++lane) {
                for (unsigned h = 0; h < 4; ++h) {
                    for (unsigned i = 0; i < 4; ++i) {
                        const gpu::Element at = gpu::element_a8(lane, i, h);
                        left[at.row][at.column] = byte_of(a[i][lane], h);
                    }
                    for (unsigned i = 0; i < 2; ++i) {
                        const gpu::Element at = gpu::element_b8(lane, i, h);
                        right[at.row][at.column] = byte_of(b[i][lane], h);
                    }
                }
            }
            for (unsigned lane = 0; lane < gpu::lanes; ++lane) {
                for (unsigned i = 0; i < 4; ++i) {
                    const gpu::Element at = gpu::element_c(lane, i);
                    for (unsigned k = 0; k < 32; ++k) c[i][lane] += left[at.row][k] * right[k][at.column];
                }
            }
        }

        template <bool Transposed>
        void load_matrices(Lanes<std::uint32_t> (&out)[4], const Lanes<const f16*>& rows) const noexcept {
            for (unsigned lane = 0; lane < gpu::lanes; ++lane) {
                for (unsigned i = 0; i < 4; ++i) {
                    std::uint32_t pair = 0;
                    for (unsigned h = 0; h < 2; ++h) {
                        const unsigned row = Transposed ? 2 * (lane % 4) + h : lane / 4;
                        const unsigned column = Transposed ? lane / 4 : 2 * (lane % 4) + h;
                        pair |= static_cast<std::uint32_t>(rows[8 * i + row][column].bits) << (16 * h);
                    }
                    out[i][lane] = pair;
                }
            }
        }

        [[nodiscard]] Lanes<float> exchange(const Lanes<float>& x, unsigned mask) const noexcept {
            Lanes<float> out;
            for (unsigned lane = 0; lane < gpu::lanes; ++lane) out[lane] = x[lane ^ mask];
            return out;
        }
        [[nodiscard]] Lanes<float> fetch(const Lanes<float>& x, const Lanes<unsigned>& from) const noexcept {
            Lanes<float> out;
            for (unsigned lane = 0; lane < gpu::lanes; ++lane) out[lane] = x[from[lane]];
            return out;
        }

    private:
        struct Copy {
            void* to;
            const void* from;
        };
        static float half_of(std::uint32_t pair, unsigned h) noexcept {
            return xquant::to_float(f16{static_cast<std::uint16_t>(pair >> (16 * h))});
        }
        static std::int32_t byte_of(std::uint32_t word, unsigned h) noexcept {
            return static_cast<std::int8_t>(static_cast<std::uint8_t>(word >> (8 * h)));
        }
        std::vector<Copy> copies_;
    };

    template <class T>
    class PerWarp {
    public:
        explicit PerWarp(unsigned warps) : at_(warps) {}
        T& operator[](const Warp& warp) noexcept { return at_[warp.index]; }

    private:
        std::vector<T> at_;
    };

    class Block {
    public:
        Block(unsigned warp_count, std::size_t shared_bytes, bool backwards)
            : memory_(shared_bytes), backwards_(backwards) {
            for (unsigned i = 0; i < warp_count; ++i) warps_.emplace_back(i);
        }
        [[nodiscard]] unsigned warps() const noexcept { return static_cast<unsigned>(warps_.size()); }
        [[nodiscard]] std::byte* shared() noexcept { return memory_.data(); }

        template <class F>
        void each_warp(F&& f) {
            for (std::size_t i = 0; i < warps_.size(); ++i) f(warps_[backwards_ ? warps_.size() - 1 - i : i]);
        }
        template <class F>
        void each_thread(F&& f) {
            each_warp([&](Warp& warp) { warp.each([&](unsigned lane) { f(warp.index * gpu::lanes + lane); }); });
        }
        void barrier() noexcept { backwards_ = !backwards_; }

    private:
        std::vector<Warp> warps_;
        std::vector<std::byte> memory_;
        bool backwards_;
    };

    static std::uint32_t pack(float low, float high) noexcept {
        return to_f16(low).bits | static_cast<std::uint32_t>(to_f16(high).bits) << 16U;
    }
    static float to_float(f16 half) noexcept { return xquant::to_float(half); }
    static f16 to_half(float value) noexcept { return to_f16(value); }
    static std::uint32_t subtract_halves(std::uint32_t a, std::uint32_t b) noexcept {
        return pack(low(a) - low(b), high(a) - high(b));
    }
    static std::uint32_t scale_halves(std::uint32_t a, std::uint32_t b, std::uint32_t c) noexcept {
        // Products of halves are exact in f32, sums of them with a half in f64.
        const auto fused = [](float x, float y, float z) {
            return static_cast<float>(static_cast<double>(x) * static_cast<double>(y) + static_cast<double>(z));
        };
        return pack(fused(low(a), low(b), low(c)), fused(high(a), high(b), high(c)));
    }
    static std::uint32_t select_bytes(std::uint32_t a, std::uint32_t b, std::uint32_t selector) noexcept {
        const std::uint64_t both = a | static_cast<std::uint64_t>(b) << 32U;
        std::uint32_t out = 0;
        for (unsigned i = 0; i < 4; ++i) {
            const unsigned which = (selector >> (4 * i)) & 7U;
            out |= static_cast<std::uint32_t>((both >> (8 * which)) & 0xFFU) << (8 * i);
        }
        return out;
    }
    static std::uint32_t mask(std::uint32_t a, std::uint32_t b, std::uint32_t c) noexcept { return (a & b) | c; }
    static float exp(float x) noexcept { return std::exp(x); }
    static float tanh(float x) noexcept { return std::tanh(x); }
    static float inverse_root(float x) noexcept { return 1.0F / std::sqrt(x); }
    static void angle(double turns, float& cosine, float& sine) noexcept {
        const double radians = (turns - std::floor(turns)) * 6.283185307179586;
        cosine = static_cast<float>(std::cos(radians));
        sine = static_cast<float>(std::sin(radians));
    }

private:
    static float low(std::uint32_t pair) noexcept { return xquant::to_float(f16{static_cast<std::uint16_t>(pair)}); }
    static float high(std::uint32_t pair) noexcept {
        return xquant::to_float(f16{static_cast<std::uint16_t>(pair >> 16U)});
    }
};

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
