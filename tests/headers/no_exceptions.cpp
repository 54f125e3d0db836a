// Compiled with -fno-exceptions: an error calls the handler, or ends the program with its message. The argument says
// which: "handler" or "default".
#include <xquant/xquant.hpp>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace {

[[noreturn]] void stop(const char* message) {
    std::printf("handler: %s\n", message);
    std::exit(3);
}

}  // namespace

int main(int, char** arguments) {
    const xquant::LayerShape shape{.width = 16, .heads = 2, .kv_heads = 2, .head_dim = 8};
    const std::vector<float> weights(16 * 16, 0.25F), x(2 * 16, 1.0F);
    xquant::Model model = xquant::Model::uniform(1, shape, xquant::Rope::standard(8));
    model.layers[0].w_k = model.layers[0].w_v = xquant::MatrixView(weights.data(), 16, 16);
    xquant::XCache<xquant::Uniform<4, 8>> cache(model);
    const xquant::Sequence sequence = cache.create();
    {
        auto step = cache.begin({{sequence, 2}});
        step.append(0, xquant::MatrixView(x.data(), 2, 16));
        step.commit();
    }
    if (cache.size(sequence) != 2) return 4;  // what is right works

    if (std::strcmp(arguments[1], "handler") == 0) {
        if (xquant::set_error_handler(stop) != nullptr) return 5;
    }
    auto step = cache.begin({{sequence, 2}});
    step.append(0, xquant::MatrixView(x.data(), 2, 12));
    return 6;
}
