/// The decoders on damaged pages. The first bytes choose a format, a tile and a head; the rest, over and over, are the codes, scales,
/// zeros, outliers and places. Whatever these hold, nothing is read or written out of bounds, a tile is a part of the whole, and
/// backends agree: on decoded values exactly, on keys that are finite to rounding.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <memory>
#include <span>
#include <vector>

#include <xquant/backend/emulated/registers.hpp>
#include <xquant/stages.hpp>

namespace {

using namespace xquant;
using backend::TileOrder;

// The best vector backend; its AVX-512 form in plain C++ where the flags allow none.
#if defined(XQUANT_HAS_AVX512)
using Machine = backend::avx512;
#elif defined(XQUANT_HAS_AVX2)
using Machine = backend::avx2;
#else
using Machine = backend::simd<backend::emulated_registers>;
#endif

void check(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "page: %s\n", what);
    std::abort();
}

/// Numbers off the front of the input (0 where it ends), then what is left of it, over and over.
class Input {
public:
    Input(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}

    /// 0 .. n - 1, out of two bytes.
    std::size_t below(std::size_t n) {
        const std::size_t low = byte(), high = byte();
        return (low | high << 8U) % n;
    }
    std::size_t one_of(std::initializer_list<std::size_t> values) { return values.begin()[below(values.size())]; }

    /// From the first call on, `below` has no more to give.
    void fill(std::span<std::byte> out) {
        if (rest_ == 0) rest_ = size_ - at_;
        for (std::byte& b : out) {
            if (at_ == size_) at_ -= rest_;
            b = rest_ == 0 ? std::byte{0} : static_cast<std::byte>(data_[at_++]);
        }
    }
    /// n floats that f16 can hold, none infinite.
    std::vector<float> finite(std::size_t n) {
        std::vector<f16> halves(n);
        fill(std::as_writable_bytes(std::span(halves)));
        std::vector<float> out;
        for (const f16 half : halves) out.push_back(to_float(f16{static_cast<std::uint16_t>(half.bits & 0xFBFFU)}));
        return out;
    }

private:
    std::size_t byte() { return at_ < size_ ? data_[at_++] : 0; }

    const std::uint8_t* data_;
    std::size_t size_, at_ = 0, rest_ = 0;
};

/// Channels and tokens of a tile; floats from row to row beyond what the tile needs.
struct Tile {
    std::size_t token, tokens, channel, channels, gap;
};

/// A head and the tokens of it to rebuild.
struct Head {
    HeadPlan plan;
    std::size_t dim, columns, token, tokens;
};

StreamCodec read_codec(Input& in) {
    StreamCodec codec;
    StreamFormat& format = codec.format;
    format.width = static_cast<std::uint32_t>(1 + in.below(300));
    const std::size_t kind = in.below(8);
    if (kind < 3) {
        constexpr CodeKind kinds[] = {CodeKind::f32, CodeKind::f16, CodeKind::bf16};
        format.kind = kinds[kind];
        format.bits = kind == 0 ? 32 : 16;
        format.stores_zero = false;
        // Whole rows, or the channels of heads.
        format.group_channels = static_cast<std::uint32_t>(1 + in.below(format.width));
        return codec;
    }
    format.bits = static_cast<std::uint8_t>(1 + in.below(8));
    const std::size_t usual = in.one_of({32, 64, 128}), odd = 8 + in.below(500);
    const std::size_t divisor = in.one_of({1, 2, 4, 8, 16});
    switch (in.below(4)) {
        case 0:
            format.group_channels = static_cast<std::uint32_t>(usual);
            break;
        case 1:
            format.group_channels = static_cast<std::uint32_t>(odd);
            break;
        case 2:  // along a channel: a part of the 128 tokens of a page
            format.group_tokens = static_cast<std::uint32_t>(128 / divisor);
            break;
        default:  // a layout of a user's own
            format.group_tokens = static_cast<std::uint32_t>(divisor);
            format.group_channels = static_cast<std::uint32_t>(1 + odd % 64);
    }
    format.stores_zero = in.below(2) == 0;
    if (!format.stores_zero) format.zero_code = static_cast<float>(in.below(256));
    const std::size_t outliers = in.below(512);
    if (outliers < 256 && format.group_tokens * format.group_channels <= 256) {
        format.outliers = static_cast<std::uint8_t>(outliers);
    }
    return codec;
}

bool same(float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); }

template <class Backend>
std::vector<float> decode_all(const QuantizedRows& rows) {
    std::vector<float> out(rows.rows() * rows.codec().format.width);
    dequantize<Backend>(rows, out.data());
    return out;
}

template <class Backend>
void check_tile(const QuantizedRows& rows, const std::vector<float>& all, const Tile& tile) {
    constexpr float untouched = 12345.0F;
    const std::size_t width = rows.codec().format.width;
    for (const TileOrder order : {TileOrder::token_major, TileOrder::channel_major}) {
        const bool by_token = order == TileOrder::token_major;
        const std::size_t lines = by_token ? tile.tokens : tile.channels, line = by_token ? tile.channels : tile.tokens;
        const std::size_t stride = line + tile.gap;
        std::vector<float> out((lines - 1) * stride + line, untouched);
        decode_tile(Backend{}, rows.view(), tile.token, tile.channel,
                    backend::Tile{out.data(), tile.tokens, tile.channels, stride, order});
        for (std::size_t i = 0; i < out.size(); ++i) {
            const std::size_t j = i / stride, k = i % stride;
            if (k >= line) {
                check(out[i] == untouched, "a tile wrote between its rows");
                continue;
            }
            const std::size_t token = tile.token + (by_token ? j : k), channel = tile.channel + (by_token ? k : j);
            check(same(out[i], all[token * width + channel]), "a tile is no part of the whole");
        }
    }
}

/// What f32 can lose in sums of products of this size.
double rounding(std::size_t terms, double size) { return static_cast<double>(terms + 8) * 0x1p-23 * size + 1e-36; }

/// The largest |entry| of a head's matrix and constant. Where there is no matrix: of the identity.
struct Largest {
    double matrix = 1, constant = 0;

    explicit Largest(const HeadPlan& plan) {
        const auto of = [](const std::vector<float>& values) {
            double out = 0;
            for (const float value : values) out = std::max(out, std::abs(static_cast<double>(value)));
            return out;
        };
        if (!plan.matrix.empty()) matrix = of(plan.matrix);
        constant = of(plan.constant);
    }
};

/// y [tokens, dim] of a head, by the stage's own function.
template <class Backend>
std::vector<float> rebuild(const QuantizedRows& rows, const Head& head) {
    std::vector<float> out(head.tokens * head.dim);
    rematerialize<Backend>(rows, head.plan, head.dim, head.token, head.tokens, out.data());
    return out;
}

/// y [columns, tokens], as attention has keys rebuilt.
template <class Backend>
std::vector<float> rebuild_keys(const QuantizedRows& rows, const Head& head, const HeadDecoder& decoder) {
    std::vector<float> out(head.columns * head.tokens);
    const auto scratch = std::make_unique_for_overwrite<float[]>(backend::rematerialize_scratch(head.dim));
    backend::rematerialize(Backend{}, rows.view(), decoder, head.token,
                           {out.data(), head.tokens, head.columns, head.tokens, TileOrder::channel_major},
                           scratch.get());
    return out;
}

/// Keys: the same from every backend and in either order, to rounding; 8-bit products are off by what scalar/int8.hpp says.
void check_head(const QuantizedRows& rows, const std::vector<float>& all, const Head& head) {
    const HeadPlan& plan = head.plan;
    const HeadDecoder decoder{0,
                              plan.first,
                              plan.width,
                              plan.matrix.empty() ? nullptr : plan.matrix.data(),
                              plan.constant.empty() ? nullptr : plan.constant.data(),
                              head.dim};
    const StreamView view = rows.view();
    const StreamFormat& format = view.format;
    const Largest largest(plan);

    const std::vector<float> expected = rebuild<backend::scalar>(rows, head), found = rebuild<Machine>(rows, head);
    const std::vector<float> scalar_keys = rebuild_keys<backend::scalar>(rows, head, decoder),
                             keys = rebuild_keys<Machine>(rows, head, decoder),
                             scalar_int8 = rebuild_keys<backend::int8<backend::scalar>>(rows, head, decoder),
                             int8 = rebuild_keys<backend::int8<Machine>>(rows, head, decoder);
    const bool by_int8 = backend::fits_int8(format, decoder);
    for (std::size_t t = 0; t < head.tokens; ++t) {
        const std::size_t token = head.token + t;
        double row = 0, scale = 0, zero = 0;
        for (std::size_t c = plan.first; c < plan.first + plan.width; ++c) {
            row += std::abs(static_cast<double>(all[token * format.width + c]));
            if (!by_int8) continue;
            const GroupScale group =
                backend::stored_scale(view, format.group_index(token / format.group_tokens, c / format.group_channels));
            // Not max: it would lose a scale that is not a number.
            if (!(std::abs(group.scale) <= scale)) scale = std::abs(group.scale);
            zero += std::abs(group.zero);
        }
        const double width = static_cast<double>(plan.width), code = std::ldexp(1.0, format.bits);
        const double most = row * largest.matrix + largest.constant;
        const double bound = rounding(plan.width, most);
        // As 8-bit products have it: each of them is off by half a step at most, and sums of zeros stand apart.
        const double product = width * code * scale * largest.matrix;
        const double bound_int8 = rounding(plan.width, 2 * product + zero * largest.matrix + largest.constant);
        for (std::size_t j = 0; j < head.dim; ++j) {
            const double exact = expected[t * head.dim + j];
            const auto near = [&](float value, double off) {
                return std::abs(static_cast<double>(value) - exact) <= off;
            };
            if (!(most < 1e37)) continue;
            check(near(found[t * head.dim + j], bound), "a vector backend rebuilds another key");
            if (j >= head.columns) continue;
            const std::size_t i = j * head.tokens + t;
            check(near(scalar_keys[i], bound) && near(keys[i], bound), "keys depend on their order");
            if (!by_int8) {
                check(near(scalar_int8[i], bound) && near(int8[i], bound), "keys depend on the tag int8");
            } else if (product + zero < 1e30) {
                const double off = std::abs(static_cast<double>(int8[i]) - static_cast<double>(scalar_int8[i]));
                check(off <= bound_int8, "8-bit products depend on the backend");
                check(near(scalar_int8[i], bound + bound_int8 + product / 254),
                      "8-bit products are off by more than stated");
            }
        }
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    Input in(data, size);
    StreamCodec codec = read_codec(in);
    // Few tokens where each takes much work: more inputs a second.
    const std::size_t width = codec.format.width, tokens = 1 + in.below(std::min<std::size_t>(160, 8192 / width));
    const bool has_levels = in.below(4) == 0;

    Tile tile;
    tile.token = in.below(tokens);
    tile.tokens = 1 + in.below(tokens - tile.token);
    tile.channel = in.below(width);
    tile.channels = 1 + in.below(width - tile.channel);
    tile.gap = in.below(3);

    Head head;
    head.plan.first = in.below(width);
    head.plan.width = 1 + in.below(width - head.plan.first);
    head.dim = 1 + in.below(80);
    const std::size_t choice = in.below(8);
    if (choice != 0 && width >= 4) {  // words of 4 channels, which 8-bit products need
        head.plan.first = head.plan.first / 4 * 4 % (width - 3);
        head.plan.first -= head.plan.first % 4;
        head.plan.width = std::max<std::size_t>(4, std::min(head.plan.width, width - head.plan.first) / 4 * 4);
    }
    const bool has_matrix = choice < 6, has_constant = in.below(2) == 0;
    if (!has_matrix) head.dim = head.plan.width;
    head.columns = 1 + in.below(head.dim);
    const std::size_t affordable = 1 + 20000 / (head.plan.width * head.dim);
    head.token = in.below(tokens);
    head.tokens = 1 + in.below(std::min({tokens - head.token, affordable, std::size_t{128}}));

    std::vector<float> levels;
    if (has_levels && codec.format.quantized()) levels = in.finite(std::size_t{1} << codec.format.bits);
    QuantizedRows rows(codec, tokens, levels);
    const MutableStreamView view = rows.view();
    const std::size_t outliers = view.format.outlier_count(tokens);
    in.fill({view.codes, view.format.code_bytes(tokens)});
    if (view.format.quantized()) {
        in.fill({reinterpret_cast<std::byte*>(view.scales), view.format.scale_bytes(tokens)});
    }
    if (outliers > 0) {
        in.fill({reinterpret_cast<std::byte*>(view.outliers), outliers * sizeof(f16)});
        in.fill({view.indices, outliers});
    }
    if (has_matrix) head.plan.matrix = in.finite(head.plan.width * head.dim);
    if (has_constant) head.plan.constant = in.finite(head.dim);

    const QuantizedRows& stored = rows;
    const std::vector<float> all = decode_all<backend::scalar>(stored), found = decode_all<Machine>(stored);
    check(std::equal(all.begin(), all.end(), found.begin(), same), "a vector backend decodes other values");
    check_tile<backend::scalar>(stored, all, tile);
    check_tile<Machine>(stored, all, tile);
    check_head(stored, all, head);
    return 0;
}
