// attend SCHEME HEADS KV_HEADS HEAD_DIM: attention of one token over 384 and over 896 cached ones, for a plugin that
// prints how many instructions have run whenever something is written (tools/instructions): before and after each call.
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include <xquant/projection/svd.hpp>
#include <xquant/xquant.hpp>

using namespace xquant;

namespace {

std::vector<float> random_rows(std::size_t n, float scale) {
    std::mt19937 bits(static_cast<std::uint32_t>(n));
    std::vector<float> out(n);
    for (float& value : out) {
        value = scale * (static_cast<float>(static_cast<std::int32_t>(bits() >> 8U) - (1 << 23)) * 0x1p-23F);
    }
    return out;
}

void mark(double value) {
    std::printf("%.6g\n", value);
    std::fflush(stdout);
}

template <class Cache>
void run(const LayerShape& shape) {
    Model model = Model::uniform(1, shape, Rope::standard(shape.head_dim, 500000.0, RopePairing::halves));
    const std::size_t width = shape.width, inner = shape.heads * shape.head_dim;
    const std::vector<float> weights = random_rows(2 * shape.kv_width() * width, 0.05F);
    model.layers[0].w_k = MatrixView(weights.data(), shape.kv_width(), width);
    model.layers[0].w_v = MatrixView(weights.data() + shape.kv_width() * width, shape.kv_width(), width);
    Cache cache(model, {});
    const Sequence sequence = cache.create();
    std::size_t there = 0;
    // Their difference: whole pages, and none of the newest tokens, which stay in f16.
    for (const std::size_t tokens : {384U, 896U}) {
        const std::size_t more = tokens - there;
        const std::vector<float> x = random_rows((more + 1) * width, 1), q = random_rows(inner, 1);
        auto prompt = cache.begin({{sequence, more}});
        prompt.append(0, MatrixView(x.data(), more, width));
        prompt.commit();
        there = tokens;
        auto step = cache.begin({{sequence, 1}});  // never committed
        step.append(0, MatrixView(x.data() + more * width, 1, width));
        std::vector<float> out(inner);
        step.attend(0, MatrixView(q.data(), 1, inner), out.data());
        mark(static_cast<double>(out[0]));
        step.attend(0, MatrixView(q.data(), 1, inner), out.data());
        mark(static_cast<double>(out[0]));
    }
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 5) {
        std::fprintf(stderr, "attend: wants SCHEME HEADS KV_HEADS HEAD_DIM, got %d arguments\n", count - 1);
        return 2;
    }
    const auto number = [&](int i) { return static_cast<std::size_t>(std::strtoul(arguments[i], nullptr, 10)); };
    const std::string scheme = arguments[1];
    const LayerShape shape{.width = 256, .heads = number(2), .kv_heads = number(3), .head_dim = number(4)};
    if (scheme == "f16") {
        run<preset::f16_kv>(shape);
    } else if (scheme == "kv4") {
        run<preset::kv<4>>(shape);
    } else if (scheme == "svd_head4") {
        run<preset::head_svd<4>>(shape);
    } else {
        std::fprintf(stderr, "attend: no scheme %s; f16, kv4 and svd_head4 are there\n", scheme.c_str());
        return 2;
    }
}
