/// Few query rows over many tokens: attention is cut into splits of 2,048 tokens, whose results are merged.
#include <algorithm>
#include <cmath>
#include <vector>

#include "support/catch.hpp"
#include "support/feed.hpp"
#include "support/model.hpp"
#include "support/oracle.hpp"

using namespace xquant;

TEST_CASE("tokens beyond 2048 are all attended to, by one query row and by as many as are split") {
    const test::Setup setup({.width = 40, .heads = 4, .kv_heads = 2, .head_dim = 8}, RopePairing::halves);
    const Layer& layer = setup.model.layers[0];
    constexpr std::size_t most = 17, heads = 32;
    // Codes are off by their rounding, rows that a query meets where it is not turned by far more.
    using Case = std::pair<const char*, double>;
    for (const auto& [name, most_off] :
         {Case{"f32 x, rotated", 2e-5}, Case{"f32 head svd", 2e-5}, Case{"f32 k and v after RoPE, Hadamard", 2e-5},
          Case{"q8_0", 0.01}, Case{"q4_0, Hadamard", 0.12}}) {
        // One split, a token of a second, three; and with a hole, where stored RoPE lags behind from some token on.
        for (const auto& [before, erased] :
             {std::pair<std::size_t, std::size_t>{2047, 0}, {2049, 0}, {5000, 0}, {5000, 150}}) {
            const test::Rows fed = test::rows_of(layer, 0, 1, 0, before);
            const auto cache = test::scheme(name).make(
                setup.model, {.sinks = 4, .recent = 32, .rows = DType::f32, .weights = WeightType::f32});
            const Sequence sequence = cache->create();
            {
                auto step = cache->begin({{sequence, before}});
                step.append(0, MatrixView(fed.x.data(), before, layer.shape.width));
                step.commit();
            }
            std::vector<float> x = fed.x;
            const auto first = x.begin() + static_cast<std::ptrdiff_t>(700 * layer.shape.width);
            x.erase(first, first + static_cast<std::ptrdiff_t>(erased * layer.shape.width));
            if (erased > 0) cache->erase(sequence, 700, 700 + erased);
            const std::size_t kept = before - erased;
            for (const std::size_t n : {std::size_t{1}, std::size_t{5}, std::size_t{16}, most}) {
                INFO(name << ", " << n << " rows behind " << before << " tokens, " << erased << " of them erased");
                const test::Rows rows = test::rows_of(layer, 0, 2, before, n);
                std::vector<float> all = x, q(kept * heads, 0.0F), out(n * heads);
                all.insert(all.end(), rows.x.begin(), rows.x.end());
                q.insert(q.end(), rows.q.begin(), rows.q.end());
                const std::vector<double> exact = test::oracle_attention(layer, all, q, kept);
                auto step = cache->begin({{sequence, n}});
                step.append(0, MatrixView(rows.x.data(), n, layer.shape.width));
                step.attend(0, MatrixView(rows.q.data(), n, heads), out.data());
                double off = 0, largest = 0;
                for (std::size_t i = 0; i < out.size(); ++i) {
                    off = std::max(off, test::distance_to(exact[kept * heads + i], out[i]));
                    largest = std::max(largest, std::abs(exact[kept * heads + i]));
                }
                CHECK(off < most_off * largest);
            }
        }
    }
}
