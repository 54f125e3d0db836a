// Registers of AVX-512 with VNNI, and the matrix unit of AMX (tiles of 8-bit products; Xeon since Sapphire Rapids).
// What each operation means: backend/simd/registers.hpp.
//
// Linux gives a process the unit's registers only after it has asked for them. Where the kernel refuses,
// amx_permitted() is false, and products go by the dot instruction: equal answers, later.
#pragma once

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include <xquant/backend/avx512/registers.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {

/// Whether the operating system lets this process use the unit. Asks once.
inline bool amx_permitted() noexcept {
    static const bool granted = [] {
        constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
        return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
    }();
    return granted;
}

struct amx_registers : avx512_registers {
    static constexpr const char* name = "amx";
    static constexpr const char* int8_name = "amx_int8";
    static constexpr bool matrix_unit = true;

    /// The shapes of the tiles, set for this thread by the outermost scope, which takes some 200 cycles, and given up
    /// at its end: registers that are in use are saved at every change of threads.
    class MatrixScope {
    public:
        MatrixScope() noexcept : outermost_(!in_use && amx_permitted()) {
            if (!outermost_) return;
            // 8 tiles of 16 rows of 64 bytes.
            alignas(64) static constexpr std::array<std::uint8_t, 64> shapes = [] {
                std::array<std::uint8_t, 64> out{};
                out[0] = 1;  // the palette
                for (std::size_t tile = 0; tile < 8; ++tile) {
                    out[16 + 2 * tile] = 64;  // bytes of a row, in 16 bits
                    out[48 + tile] = 16;      // rows
                }
                return out;
            }();
            _tile_loadconfig(shapes.data());
            in_use = true;
        }
        ~MatrixScope() {
            if (!outermost_) return;
            _tile_release();
            in_use = false;
        }
        MatrixScope(const MatrixScope&) = delete;
        MatrixScope& operator=(const MatrixScope&) = delete;

        [[nodiscard]] bool ready() const noexcept { return in_use; }

    private:
        static inline thread_local bool in_use = false;
        bool outermost_;
    };

    /// Tiles 0 to 3 are sums of 16 columns and 16 tokens each, tile 4 weights, 5 and 6 codes by turns.
    static void multiply_panel(const std::uint32_t* weights, std::size_t step, const std::uint32_t* quads,
                               std::size_t quad_step, std::size_t groups, std::int32_t* sums) noexcept {
        // The intrinsics of g++ 12 do not say that they read memory: what they read has to be written by here.
        std::atomic_signal_fence(std::memory_order_seq_cst);
        const std::size_t from_column = 4 * step, from_quad = 4 * quad_step;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (std::size_t g = 0; g < groups; ++g) {
            const std::uint32_t* const codes = quads + g * 16 * quad_step;
            _tile_loadd(4, weights + g * 16, from_column);
            _tile_loadd(5, codes, from_quad);
            _tile_dpbsud(0, 4, 5);
            _tile_loadd(6, codes + 16, from_quad);
            _tile_dpbsud(1, 4, 6);
            _tile_loadd(5, codes + 32, from_quad);
            _tile_dpbsud(2, 4, 5);
            _tile_loadd(6, codes + 48, from_quad);
            _tile_dpbsud(3, 4, 6);
        }
        _tile_stored(0, sums, 64 * sizeof *sums);
        _tile_stored(1, sums + 16, 64 * sizeof *sums);
        _tile_stored(2, sums + 32, 64 * sizeof *sums);
        _tile_stored(3, sums + 48, 64 * sizeof *sums);
    }
};

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
