#include "linear.hpp"

#include <Eigen/Core>
#include <algorithm>

namespace llm {

void multiply(const float* x, std::size_t n, const Matrix& weights, const std::vector<float>& bias, float* y,
              ThreadPool& pool) {
    using ColumnMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic>;
    using Index = Eigen::Index;
    const std::size_t in = weights.columns, out = weights.rows;
    if (n == 0 || out == 0) return;
    // A row-major [n, in] is a column-major [in, n]: Y = W X with W' as stored.
    // Eigen packs the weights of a tile anew for each block of rows, so the blocks of long inputs are tall.
    const std::size_t tile_rows = n <= 192 ? n : 512;
    const std::size_t tile_out = n <= 192 ? std::clamp<std::size_t>(out / 16, 32, 1024) : 512;
    const std::size_t tiles_out = (out + tile_out - 1) / tile_out, tiles_rows = (n + tile_rows - 1) / tile_rows;
    pool.parallel_for(tiles_out * tiles_rows, [&](std::size_t tile) {
        const std::size_t row = tile / tiles_out * tile_rows, first = tile % tiles_out * tile_out;
        const auto rows = static_cast<Index>(std::min(tile_rows, n - row)),
                   outs = static_cast<Index>(std::min(tile_out, out - first));
        const Eigen::Map<const ColumnMajor> W(weights.values.data() + first * in, static_cast<Index>(in), outs);
        if (rows == 1) {
            const Eigen::Map<const Eigen::VectorXf> X(x + row * in, static_cast<Index>(in));
            Eigen::Map<Eigen::VectorXf> Y(y + row * out + first, outs);
            Y.noalias() = W.transpose() * X;
            if (!bias.empty()) Y += Eigen::Map<const Eigen::VectorXf>(bias.data() + first, outs);
            return;
        }
        const Eigen::Map<const ColumnMajor> X(x + row * in, static_cast<Index>(in), rows);
        Eigen::Map<ColumnMajor, 0, Eigen::OuterStride<>> Y(y + row * out + first, outs, rows,
                                                           Eigen::OuterStride<>(static_cast<Index>(out)));
        Y.noalias() = W.transpose() * X;
        if (!bias.empty()) Y.colwise() += Eigen::Map<const Eigen::VectorXf>(bias.data() + first, outs);
    });
}

}  // namespace llm
