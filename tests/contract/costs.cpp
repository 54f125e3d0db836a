/// What errors of coded rows cost, by the metric of a stream, against what they do to K and V: rows are changed, K and
/// V are made of them as a plan says, and what that costs is added up.
#include <xquant/projection/cost.hpp>
#include <xquant/projection/joint_svd.hpp>
#include <xquant/projection/key_value_latent.hpp>
#include <xquant/projection/x_latent.hpp>
#include <xquant/xquant.hpp>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/model.hpp"
#include "support/statistics.hpp"

using namespace xquant;

namespace {

using Row = std::vector<double>;

/// e^T M e for M [n, n].
double square(const Row& e, const Row& m) {
    double sum = 0;
    for (std::size_t i = 0; i < e.size(); ++i) {
        for (std::size_t j = 0; j < e.size(); ++j) sum += e[i] * m[i * e.size() + j] * e[j];
    }
    return sum;
}

/// What a head makes of an error of a stream's coded row.
Row error_of_head(const LayerPlan& plan, const HeadPlan& head, const Row& coded, std::size_t dh) {
    const StreamPlan& stream = plan.streams[head.stream];
    Row row = coded;
    if (!stream.latent.empty()) {
        row.assign(stream.width, 0.0);
        for (std::size_t c = 0; c < stream.width; ++c) {
            for (std::size_t k = 0; k < coded.size(); ++k) {
                const float back =
                    stream.spread.empty() ? stream.latent[c * coded.size() + k] : stream.spread[k * stream.width + c];
                row[c] += coded[k] * static_cast<double>(back);
            }
        }
    }
    Row out(dh, 0.0);
    for (std::size_t c = 0; c < head.width; ++c) {
        for (std::size_t i = 0; i < dh; ++i) {
            const double entry =
                head.matrix.empty() ? (c == i ? 1.0 : 0.0) : static_cast<double>(head.matrix[c * dh + i]);
            out[i] += row[head.first + c] * entry;
        }
    }
    return out;
}

/// W_o^T W_o of the query heads that read a kv head, or the identity.
Row costs_without_statistics(const Layer& layer, std::size_t head, bool key) {
    const std::size_t dh = layer.shape.head_dim, group = layer.shape.heads / layer.shape.kv_heads;
    Row out(dh * dh, 0.0);
    for (std::size_t i = 0; i < dh && (key || layer.w_o.empty()); ++i) out[i * dh + i] = 1;
    if (key || layer.w_o.empty()) return out;
    const auto* const w = static_cast<const float*>(layer.w_o.data);
    for (std::size_t h = head * group; h < (head + 1) * group; ++h) {
        for (std::size_t r = 0; r < layer.w_o.rows; ++r) {
            for (std::size_t i = 0; i < dh; ++i) {
                for (std::size_t j = 0; j < dh; ++j) {
                    out[i * dh + j] += static_cast<double>(w[r * layer.w_o.cols + h * dh + i]) *
                                       static_cast<double>(w[r * layer.w_o.cols + h * dh + j]);
                }
            }
        }
    }
    return out;
}

/// What an error of a stream's coded row costs, without the floor.
class Expected {
public:
    Expected(const LayerPlan& plan, const Layer& layer, std::size_t stream)
        : plan_(plan), layer_(layer), stream_(stream), coded_(plan.streams[stream].coded_width()) {
        const std::size_t dh = layer.shape.head_dim;
        for (const bool key : {true, false}) {
            const std::vector<HeadPlan>& heads = key ? plan.keys : plan.values;
            for (std::size_t h = 0; h < heads.size(); ++h) {
                if (heads[h].stream != stream) continue;
                Part part{&heads[h], {}, 1};
                if (layer.statistics != nullptr && !(key && plan.keys_after_rope)) {
                    const std::vector<float>& all = key ? layer.statistics->key_cost : layer.statistics->value_cost;
                    part.cost.assign(all.begin() + static_cast<std::ptrdiff_t>(h * dh * dh),
                                     all.begin() + static_cast<std::ptrdiff_t>((h + 1) * dh * dh));
                } else {
                    // Each head's K counts as much as its V: what an error of each channel costs is 1 together.
                    part.cost = costs_without_statistics(layer, h, key);
                    double sum = 0;
                    for (std::size_t c = 0; c < coded_; ++c) {
                        Row unit(coded_, 0.0);
                        unit[c] = 1;
                        sum += square(error_of_head(plan_, heads[h], unit, dh), part.cost);
                    }
                    part.weight = 1 / sum;
                }
                parts_.push_back(std::move(part));
            }
        }
    }

    [[nodiscard]] std::size_t coded() const { return coded_; }
    [[nodiscard]] std::size_t heads() const { return parts_.size(); }
    [[nodiscard]] double operator()(const Row& error) const {
        double sum = 0;
        for (const Part& part : parts_) {
            sum += part.weight * square(error_of_head(plan_, *part.head, error, layer_.shape.head_dim), part.cost);
        }
        return sum;
    }

private:
    struct Part {
        const HeadPlan* head;
        Row cost;
        double weight;
    };
    const LayerPlan& plan_;
    const Layer& layer_;
    std::size_t stream_, coded_;
    std::vector<Part> parts_;
};

/// "" where the metric of a stream says what errors of its rows cost.
std::string difference(const LayerPlan& plan, const Layer& layer, std::size_t stream, std::size_t block) {
    const StreamMetric metric = detail::metric_of_stream(plan, layer, stream);
    const Expected expected(plan, layer, stream);
    const std::size_t n = expected.coded();
    if (expected.heads() == 0) return "no head reads the stream";
    if (metric.block != block) return "its blocks have " + std::to_string(metric.block) + " channels";
    if (n % block != 0 || metric.values.size() != n * block) return "its size is wrong";
    // The floor of a block: 0.01 of the mean of what errors of its channels cost.
    Row floors;
    for (std::size_t first = 0; first < n; first += block) {
        double sum = 0;
        for (std::size_t c = first; c < first + block; ++c) {
            Row unit(n, 0.0);
            unit[c] = 1;
            sum += expected(unit);
        }
        floors.push_back(0.01 * sum / static_cast<double>(block));
    }
    test::Random random(4);
    for (std::size_t trial = 0; trial < 12; ++trial) {
        Row error(n, 0.0);
        // Of all channels, of one, and of two that may belong to different heads.
        if (trial < 4) std::generate(error.begin(), error.end(), [&] { return static_cast<double>(random()); });
        for (std::size_t k = 0; k < trial / 4; ++k) error[random.below(n)] = 1;
        double found = 0, wanted = expected(error);
        for (std::size_t i = 0; i < n; ++i) {
            wanted += floors[i / block] * error[i] * error[i];
            const std::size_t first = i - i % block;
            for (std::size_t j = first; j <= i; ++j) {
                found += (i == j ? 1 : 2) * error[i] * error[j] * metric.values[i * block + j - first];
            }
        }
        if (!(std::abs(found - wanted) <= 2e-5 * wanted) || !(wanted > 0)) {
            return "error " + std::to_string(trial) + " costs " + std::to_string(found) + ", expected " +
                   std::to_string(wanted);
        }
    }
    return "";
}

template <class P>
void check(const char* name, const Layer& layer) {
    INFO(name);
    const LayerPlan plan = P::prepare(layer);
    const auto footprint = P::footprint(layer);
    for (std::size_t i = 0; i < P::streams; ++i) {
        INFO("stream " << i);
        const std::size_t block = footprint.blocks[i] > 0 ? footprint.blocks[i] : footprint.widths[i];
        CHECK(difference(plan, layer, i, block) == "");
    }
}
template <class P>
void check_of_difference(const char* name, const Layer& layer) {
    INFO("difference of " << name);
    const LayerPlan plan = P::prepare_difference(layer);
    const auto footprint = P::difference_footprint(layer);
    CHECK(difference(plan, layer, 0, footprint.blocks[0] > 0 ? footprint.blocks[0] : footprint.widths[0]) == "");
}

void check_all(const Layer& layer) {
    check<Plain>("Plain", layer);
    check<Rotated>("Rotated", layer);
    check<KeyValue<BeforeRope>>("KeyValue<BeforeRope>", layer);
    check<KeyValue<AfterRope>>("KeyValue<AfterRope>", layer);
    check<KeyValue<AfterRope, Hadamard>>("KeyValue<AfterRope, Hadamard>", layer);
    check<SplitSvd>("SplitSvd", layer);
    check<HeadSvd>("HeadSvd", layer);
    check_of_difference<Plain>("Plain", layer);
    check_of_difference<Rotated>("Rotated", layer);
    if (2 * layer.shape.kv_width() <= layer.shape.width) {
        check<JointSvd<NoMix, FullRank>>("JointSvd<NoMix>", layer);
        check<JointSvd<Hadamard, FullRank>>("JointSvd<Hadamard>", layer);
        check_of_difference<JointSvd<NoMix, FullRank>>("JointSvd<NoMix>", layer);
        check_of_difference<JointSvd<Hadamard, FullRank>>("JointSvd<Hadamard>", layer);
    }
    Layer given = layer;
    given.input = LayerInput::keys_before_rope;
    check<KeyValue<BeforeRope>>("KeyValue<BeforeRope> of K and V", given);
    check<HeadSvd>("HeadSvd of K and V", given);
    if (layer.statistics == nullptr) return;
    check_of_difference<XLatent<AllChannels>>("XLatent<AllChannels>", layer);
    if (2 * layer.shape.kv_width() <= layer.shape.width) {
        check_of_difference<XLatent<KeysAndValues>>("XLatent<KeysAndValues>", layer);
    }
}

}  // namespace

TEST_CASE("the metric of a stream says what errors of its rows do to K and V") {
    test::Setup setups[] = {
        test::Setup({.width = 40, .heads = 6, .kv_heads = 3, .head_dim = 4}, RopePairing::halves),
        test::Setup({.width = 32, .heads = 4, .kv_heads = 1, .head_dim = 16}, RopePairing::interleaved),
        test::Setup({.width = 24, .heads = 4, .kv_heads = 4, .head_dim = 6}, RopePairing::halves),
    };
    for (test::Setup& setup : setups) {
        Layer& layer = setup.model.layers[0];
        INFO("width " << layer.shape.width);
        const Calibration known = test::random_calibration(setup.model);
        const std::size_t heads = layer.shape.heads * layer.shape.head_dim;
        const std::vector<float> w_o = test::Random(9).rows(layer.shape.width * heads),
                                 bias = test::Random(3).rows(layer.shape.kv_width(), 2),
                                 norm = test::Random(4).rows(layer.shape.head_dim);
        for (const bool with_output : {false, true}) {
            for (const bool with_statistics : {false, true}) {
                INFO((with_output ? "W_o" : "no W_o") << (with_statistics ? ", statistics" : ", no statistics"));
                layer.w_o = with_output ? MatrixView(w_o.data(), layer.shape.width, heads) : MatrixView();
                layer.statistics = with_statistics ? &known.layers[0] : nullptr;
                check_all(layer);
            }
        }
        layer.b_k = layer.b_v = bias.data();
        layer.k_norm = norm.data();
        check_all(layer);
    }
}

TEST_CASE("statistics whose costs are not there, or of another size, are as good as none") {
    test::Setup setup({.width = 40, .heads = 6, .kv_heads = 3, .head_dim = 4}, RopePairing::halves);
    Layer& layer = setup.model.layers[0];
    const LayerPlan plan = KeyValue<BeforeRope>::prepare(layer);
    const std::vector<double> without = detail::metric_of_stream(plan, layer, 1).values;
    Calibration known = test::random_calibration(setup.model);
    layer.statistics = known.layers.data();
    CHECK(detail::metric_of_stream(plan, layer, 1).values != without);
    known.layers[0].key_cost.clear();
    CHECK(detail::metric_of_stream(plan, layer, 1).values == without);
    known = test::random_calibration(setup.model);
    layer.statistics = known.layers.data();
    known.layers[0].value_cost.pop_back();
    CHECK(detail::metric_of_stream(plan, layer, 1).values == without);
}

TEST_CASE("a head that costs nothing leaves a metric that can be used") {
    test::Setup setup({.width = 40, .heads = 6, .kv_heads = 3, .head_dim = 4}, RopePairing::halves);
    Layer& layer = setup.model.layers[0];
    Calibration known = test::random_calibration(setup.model);
    layer.statistics = known.layers.data();
    const auto usable = [&](const LayerPlan& plan) {
        for (std::size_t stream = 0; stream < plan.streams.size(); ++stream) {
            const StreamMetric metric = detail::metric_of_stream(plan, layer, stream);
            const std::size_t n = metric.block;
            std::vector<float> columns;
            for (std::size_t first = 0; first < metric.values.size(); first += n * n) {
                CHECK_NOTHROW(factor_metric(metric.values.data() + first, n, columns));
            }
            for (const float value : columns) REQUIRE(std::isfinite(value));
        }
    };
    for (const std::size_t zeros : {16U, 48U}) {
        std::fill_n(known.layers[0].key_cost.begin(), zeros, 0.0F);
        std::fill_n(known.layers[0].value_cost.begin(), zeros, 0.0F);
        usable(KeyValue<BeforeRope>::prepare(layer));
        usable(Rotated::prepare(layer));
        usable(HeadSvd::prepare(layer));
        usable(JointSvd<Hadamard, FullRank>::prepare_difference(layer));
    }
}

TEST_CASE("bases of least cost say the same of their errors, and their floor beside it") {
    test::Setup setup({.width = 40, .heads = 6, .kv_heads = 3, .head_dim = 4}, RopePairing::halves);
    Layer& layer = setup.model.layers[0];
    const Calibration known = test::random_calibration(setup.model);
    layer.statistics = known.layers.data();
    const auto compare = [&](const char* name, const LayerPlan& plan) {
        INFO(name);
        for (std::size_t stream = 0; stream < plan.streams.size(); ++stream) {
            INFO("stream " << stream);
            const StreamMetric& metric = plan.streams[stream].metric;
            const Expected expected(plan, layer, stream);
            const std::size_t n = expected.coded(), block = metric.block;
            REQUIRE(block > 0);
            REQUIRE(metric.values.size() == n * block);
            // Less than what the floor and the ridge add, and more than nothing.
            test::Random random(6);
            double most = 0, sum = 0, added = 0;
            for (std::size_t trial = 0; trial < 30; ++trial) {
                Row error(n);
                std::generate(error.begin(), error.end(), [&] { return static_cast<double>(random()); });
                double found = 0;
                for (std::size_t i = 0; i < n; ++i) {
                    for (std::size_t j = i - i % block; j <= i; ++j) {
                        found += (i == j ? 1 : 2) * error[i] * error[j] * metric.values[i * block + j % block];
                    }
                }
                const double wanted = expected(error);
                CHECK(found > wanted * (1 - 1e-5));
                most = std::max(most, found / wanted);
                sum += wanted;
                added += found - wanted;
            }
            INFO("up to " << most << ", on average " << added / sum);
            CHECK(added < 0.5 * sum);
        }
    };
    compare("KeyValueLatent<EachHead>", KeyValueLatent<EachHead>::prepare(layer));
    compare("KeyValueLatent<AllHeads>", KeyValueLatent<AllHeads>::prepare(layer));
    compare("XLatent<AllChannels>", XLatent<AllChannels>::prepare(layer));
    compare("XLatent<KeysAndValues>", XLatent<KeysAndValues>::prepare(layer));
    compare("difference of XLatent<AllChannels>", XLatent<AllChannels>::prepare_difference(layer));
    compare("difference of XLatent<KeysAndValues>", XLatent<KeysAndValues>::prepare_difference(layer));
}
