// The emulated register with a matrix unit in plain C++: the form that kernels have on AMX runs on any machine, for
// tests. Slow.
#pragma once

#include <xquant/backend/emulated/registers.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {

struct emulated_matrix_registers : emulated_registers {
    static constexpr const char* name = "emulated_matrix";
    static constexpr const char* int8_name = "emulated_matrix_int8";
    static constexpr bool matrix_unit = true;

    struct MatrixScope {
        static inline std::size_t refused = 0;  ///< for tests: while not 0, the unit is not there
        [[nodiscard]] static bool ready() noexcept { return refused == 0; }
    };

    static void multiply_panel(const std::uint32_t* weights, std::size_t step, const std::uint32_t* quads,
                               std::size_t quad_step, std::size_t groups, std::int32_t* sums) noexcept {
        constexpr std::size_t columns = 16, tokens = 64;
        for (std::size_t j = 0; j < columns; ++j) {
            for (std::size_t t = 0; t < tokens; ++t) {
                std::uint32_t sum = 0;
                for (std::size_t q = 0; q < 16 * groups; ++q) {
                    const std::uint32_t codes = quads[q * quad_step + t], four = weights[j * step + q];
                    for (unsigned b = 0; b < 32; b += 8) {
                        const auto weight = static_cast<std::int8_t>(static_cast<std::uint8_t>(four >> b));
                        sum += static_cast<std::uint32_t>(static_cast<std::int32_t>((codes >> b) & 0xFFU) * weight);
                    }
                }
                sums[j * tokens + t] = static_cast<std::int32_t>(sum);
            }
        }
    }
};

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
