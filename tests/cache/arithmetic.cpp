/// What the processor is told to do with numbers, and numbers that are none: a rounding mode that is not the usual one
/// is refused, subnormal floats that are taken for 0 change nothing, and a query that is not finite gives NaN.
#include <cfenv>
#include <cmath>
#include <iostream>
#include <limits>
#include <string>
#include <vector>

#include <xquant/stages.hpp>

#include "support/catch.hpp"
#include "support/complaint.hpp"
#include "support/feed.hpp"
#include "support/flush.hpp"
#include "support/model.hpp"
#include "support/oracle.hpp"

using namespace xquant;
using test::complaint;
using test::contains;
using test::Feed;
using test::Scheme;

namespace {

test::Setup small_model() {
    return {{.width = 40, .heads = 4, .kv_heads = 2, .head_dim = 10}, RopePairing::interleaved, 4};
}

/// A rounding mode, for as long as the object lives.
class Rounding {
public:
    explicit Rounding(int mode) : before_(std::fegetround()), set_(std::fesetround(mode) == 0) {}
    Rounding(const Rounding&) = delete;
    Rounding& operator=(const Rounding&) = delete;
    ~Rounding() { std::fesetround(before_); }
    [[nodiscard]] bool set() const noexcept { return set_; }

private:
    int before_;
    bool set_;
};

}  // namespace

TEST_CASE("no cache is made, and nothing is quantized, where floats are not rounded to the nearest") {
    const test::Setup setup = small_model();
    const Scheme& scheme = test::scheme("x 4");
    const std::vector<float> x(40, 0.5F);
    for (const int mode : {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO}) {
        std::string of_cache, of_stage;
        {
            const Rounding rounding(mode);
            REQUIRE(rounding.set());
            of_cache = complaint<state_error>([&] { static_cast<void>(scheme.make(setup.model, {})); });
            of_stage =
                complaint<state_error>([&] { static_cast<void>(quantize<Uniform<4>>(MatrixView(x.data(), 1, 40))); });
        }
        INFO("rounding mode " << mode);
        CHECK(contains(of_cache, "rounded to the nearest"));
        CHECK(contains(of_cache, "-funsafe-math-optimizations"));
        CHECK(of_stage == of_cache);
    }
    CHECK_NOTHROW(static_cast<void>(scheme.make(setup.model, {})));
}

TEST_CASE("caches of every scheme store and answer the same where subnormal floats are taken for 0") {
    if (!test::FlushSubnormals::works()) {
        std::cerr << "SKIPPED: this processor's floats are always subnormal where they are small\n";
        return;
    }
    test::Setup setup = small_model();
    // V and K of some 0.001: at 4 bits their scales are subnormal f16.
    for (Layer& layer : setup.model.layers) {
        for (const MatrixView* weight : {&layer.w_k, &layer.w_v}) {
            auto* values = const_cast<float*>(static_cast<const float*>(weight->data));
            for (std::size_t i = 0; i < weight->rows * weight->cols; ++i) values[i] *= 0x1p-12F;
        }
    }
    for (const Scheme& scheme : test::schemes()) {
        INFO(scheme.name);
        const Options options{.sinks = 2, .recent = 5};
        std::vector<std::vector<test::StoredPage>> pages;
        std::vector<test::Outputs> outputs;
        const std::shared_ptr<test::Cache> caches[2] = {scheme.make(setup.model, options),
                                                        scheme.make(setup.model, options)};
        for (const auto& cache : caches) {
            Feed feed;
            feed.sequence = cache->create();
            const auto run = [&] {
                for (const std::size_t n : {std::size_t{140}, std::size_t{1}, std::size_t{3}}) {
                    test::feed(*cache, setup.model, {{&feed, n}});
                }
            };
            if (cache == caches[0]) {
                run();
            } else {
                const test::FlushSubnormals flush;
                run();
            }
            pages.push_back(test::stored_pages(*cache, feed.sequence, scheme, setup.model, options));
            outputs.push_back(feed.out);
        }
        CHECK(pages[0] == pages[1]);
        double worst = 0, largest = 0;
        for (std::size_t layer = 0; layer < outputs[0].size(); ++layer) {
            for (std::size_t i = 0; i < outputs[0][layer].size(); ++i) {
                worst = std::max(worst, test::distance_to(double{outputs[0][layer][i]}, outputs[1][layer][i]));
                largest = std::max(largest, std::abs(double{outputs[0][layer][i]}));
            }
        }
        CHECK(largest > 1e-5);
        CHECK(worst <= 1e-6 * largest);
    }
}

TEST_CASE("a query that is not finite gives NaN for its head, and nothing else changes, in every scheme") {
    const test::Setup setup = small_model();
    const std::size_t heads = 4, dh = 10, width = heads * dh;
    for (const Scheme& scheme : test::schemes()) {
        const auto cache = scheme.make(setup.model, {.sinks = 2, .recent = 5});
        Feed feed;
        feed.sequence = cache->create();
        test::feed(*cache, setup.model, {{&feed, 2 + 128 + 5}});
        for (const std::size_t n : {std::size_t{1}, std::size_t{2}, std::size_t{40}}) {
            auto step = cache->begin({{feed.sequence, n}});
            for (std::size_t layer = 0; layer < setup.model.layers.size(); ++layer) {
                test::Rows rows = test::rows_of(setup.model.layers[layer], layer, 1, feed.tokens, n);
                step.append(layer, MatrixView(rows.x.data(), n, 40));
                std::vector<float> clean(n * width), found(n * width, 7.0F);
                step.attend(layer, MatrixView(rows.q.data(), n, width), clean.data());
                for (const float bad :
                     {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
                    const std::size_t row = n / 2, head = layer, channel = row * width + head * dh + layer;
                    const float good = rows.q[channel];
                    rows.q[channel] = bad;
                    step.attend(layer, MatrixView(rows.q.data(), n, width), found.data());
                    rows.q[channel] = good;
                    std::size_t missed = 0, touched = 0;
                    for (std::size_t i = 0; i < found.size(); ++i) {
                        const bool faulty = i / dh == channel / dh;
                        missed += faulty && !std::isnan(found[i]) ? 1U : 0U;
                        touched += !faulty && found[i] != clean[i] ? 1U : 0U;
                    }
                    INFO(scheme.name << ", step of " << n << ", layer " << layer << ", " << bad);
                    CHECK(missed == 0);
                    CHECK(touched == 0);
                }
            }
        }
    }
}
