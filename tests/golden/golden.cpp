/// Stored bytes, compared with the files in data/: codes, scales, zeros and a whole page. README.md says what they are
/// and how they are made again.
#include <xquant/stages.hpp>
#include <xquant/xquant.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "golden/stored.hpp"
#include "support/catch.hpp"
#include "support/format.hpp"

using namespace xquant;
namespace fs = std::filesystem;

namespace {

// ctest starts the program in the top folder.
const fs::path data = "tests/golden/data";

enum Kind : std::uint32_t { f16_rows, f32_rows, codes_and_scales, page };

/// "XQG1" and seven numbers; then what the kind says.
struct File {
    std::uint32_t kind, rows, columns, bits, group_tokens, group_channels, count;
    std::vector<std::byte> content;

    template <class T>
    std::vector<T> values(std::size_t offset, std::size_t n) const {
        REQUIRE(offset + n * sizeof(T) <= content.size());
        std::vector<T> out(n);
        std::memcpy(out.data(), content.data() + offset, n * sizeof(T));
        return out;
    }
    std::vector<float> row_values() const {
        const std::size_t n = std::size_t{rows} * columns;
        if (kind == f32_rows) return values<float>(0, n);
        REQUIRE(kind == f16_rows);
        std::vector<float> out;
        for (const f16 half : values<f16>(0, n)) out.push_back(to_float(half));
        return out;
    }
};

File read(const fs::path& path) {
    INFO(path.string());
    std::ifstream stream(path, std::ios::binary);
    REQUIRE(stream.good());
    std::vector<char> bytes{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
    REQUIRE(bytes.size() >= 32);
    REQUIRE(std::string(bytes.data(), 4) == "XQG1");
    std::array<std::uint32_t, 7> numbers{};
    std::memcpy(numbers.data(), bytes.data() + 4, sizeof numbers);
    const auto* content = reinterpret_cast<const std::byte*>(bytes.data());
    return {numbers[0], numbers[1], numbers[2], numbers[3],
            numbers[4], numbers[5], numbers[6], {content + 32, content + bytes.size()}};
}

template <class Quantizer, class Axis>
QuantizedRows encode(const MatrixView& rows) {
    return quantize<Quantizer, Axis>(rows);
}

using Encode = QuantizedRows (*)(const MatrixView&);

const std::map<std::string, Encode>& quantizers() {
    static const std::map<std::string, Encode> all{
        {"minmax2_token128", encode<Uniform<2, 128>, PerToken>},
        {"minmax3_token128", encode<Uniform<3, 128>, PerToken>},
        {"minmax4_token128", encode<Uniform<4, 128>, PerToken>},
        {"minmax5_token128", encode<Uniform<5, 128>, PerToken>},
        {"minmax6_token128", encode<Uniform<6, 128>, PerToken>},
        {"minmax8_token128", encode<Uniform<8, 128>, PerToken>},
        {"minmax4_token32", encode<Uniform<4, 32>, PerToken>},
        {"minmax4_token53", encode<Uniform<4, 53>, PerToken>},
        {"minmax4_token64", encode<Uniform<4, 64>, PerToken>},
        {"clip2_token128", encode<Uniform<2, 128, MinMse>, PerToken>},
        {"clip3_token128", encode<Uniform<3, 128, MinMse>, PerToken>},
        {"q8_0", encode<GgmlQ8_0, PerToken>},
        {"q4_0", encode<GgmlQ4_0, PerToken>},
        {"minmax2_channel128", encode<Uniform<2, 128>, PerChannel>},
        {"minmax3_channel128", encode<Uniform<3, 128>, PerChannel>},
        {"minmax4_channel128", encode<Uniform<4, 128>, PerChannel>},
        {"minmax8_channel128", encode<Uniform<8, 128>, PerChannel>},
    };
    return all;
}

void compare_codes(const File& file, const File& source, Encode encode_rows) {
    REQUIRE(file.kind == codes_and_scales);
    REQUIRE(file.rows <= source.rows);
    REQUIRE(file.columns <= source.columns);
    const std::vector<float> x = source.row_values();
    const QuantizedRows stored = encode_rows(MatrixView(x.data(), file.rows, file.columns, source.columns));
    const StreamView view = stored.view();
    REQUIRE(view.format.bits == file.bits);
    REQUIRE(view.format.group_tokens == file.group_tokens);
    REQUIRE(view.format.group_channels == file.group_channels);

    const std::size_t n = std::size_t{file.rows} * file.columns;
    CHECK(test::difference(file.values<std::uint8_t>(0, n), test::codes_of(stored)) == "");
    const auto scales = file.values<float>(n, file.count), zeros = file.values<float>(n + 4 * file.count, file.count);
    CHECK(test::difference(test::halves(scales), std::vector<f16>(view.scales, view.scales + file.count)) == "");
    if (view.format.stores_zero) {
        CHECK(test::difference(test::halves(zeros), std::vector<f16>(view.zeros, view.zeros + file.count)) == "");
    } else {
        for (std::size_t i = 0; i < file.count; ++i) CHECK(backend::stored_scale(view, i).zero == zeros[i]);
    }
}

/// Rows that were rotated: products, so equal to rounding alone.
void compare_rotation(const File& file, const File& source, std::size_t block) {
    REQUIRE(file.kind == f32_rows);
    REQUIRE(file.columns == source.columns);
    const std::vector<float> x = source.row_values(), expected = file.row_values();
    std::vector<float> scratch(file.columns);
    const std::vector<float> dct = dct_matrix(dct_size(block));
    for (std::size_t t = 0; t < file.rows; ++t) {
        std::vector<float> row(x.begin() + static_cast<std::ptrdiff_t>(t * file.columns),
                               x.begin() + static_cast<std::ptrdiff_t>((t + 1) * file.columns));
        float length = 0;
        for (const float value : row) length += value * value;
        rotate_blocks(row.data(), row.size(), block, dct.data(), scratch.data());
        for (std::size_t c = 0; c < row.size(); ++c) {
            INFO("row " << t << ", channel " << c);
            REQUIRE(std::abs(row[c] - expected[t * file.columns + c]) <= 1e-6F * std::sqrt(length));
        }
    }
}

}  // namespace

TEST_CASE("codes, scales and zeros are those of the files, byte for byte") {
    std::size_t compared = 0, rotated = 0;
    for (const fs::directory_entry& entry : fs::directory_iterator(data)) {
        const std::string name = entry.path().filename().string(), source = entry.path().stem().string();
        const std::string kind = entry.path().extension().string().substr(1);
        if (kind == "rows" || source == "page") continue;
        INFO(name);
        const File file = read(entry.path()), rows = read(data / (source + ".rows"));
        if (kind == "rotation" || kind == "head_hadamard") {
            compare_rotation(file, rows, kind == "rotation" ? rows.columns : 64);
            ++rotated;
            continue;
        }
        const auto found = quantizers().find(kind);
        REQUIRE(found != quantizers().end());
        compare_codes(file, rows, found->second);
        ++compared;
    }
    // Three layers in 16 quantizers, edge rows in 13, tiny rows in 11.
    CHECK(compared == 3 * 16 + 13 + 11);
    CHECK(rotated == 3 * 2);
}

TEST_CASE("a sealed page is that of the file, byte for byte, whatever the steps that filled it") {
    const File file = read(data / "page.minmax3_channel128_minmax4_token64");
    REQUIRE(file.kind == page);
    const std::size_t tokens = file.rows, r = file.columns;
    const File sources[] = {read(data / "layer00.rows"), read(data / "layer10.rows")};
    const std::size_t d = sources[0].columns;
    // K and V are channels of X themselves, so that no rounding of a product can change a code.
    std::vector<float> w_k(r * d), w_v(r * d);
    for (std::size_t i = 0; i < r; ++i) w_k[i * d + i] = w_v[i * d + r + i] = 1;
    Model model = Model::uniform(2, {.width = d, .heads = 1, .kv_heads = 1, .head_dim = r}, Rope::standard(r));
    for (Layer& layer : model.layers) {
        layer.w_k = MatrixView(w_k.data(), r, d);
        layer.w_v = MatrixView(w_v.data(), r, d);
    }
    using Cache = XCache<PerStream<Uniform<3, 128>, Uniform<4, 64>>, Layout<PerChannel, PerToken>, CrossLayer<Off>,
                         Projection<KeyValue<BeforeRope>>>;
    const std::vector<std::size_t> all_at_once{tokens}, in_pieces{1, 31, 64, 2, 30};
    for (const auto& steps : {all_at_once, in_pieces}) {
        Cache cache(model, {.sinks = 0, .recent = 0});
        const Sequence sequence = cache.create();
        std::size_t done = 0;
        for (const std::size_t n : steps) {
            auto step = cache.begin({{sequence, n}});
            for (std::size_t layer = 0; layer < 2; ++layer) {
                const std::vector<float> x = sources[layer].row_values();
                step.append(layer, MatrixView(x.data() + done * d, n, d));
            }
            step.commit();
            done += n;
        }
        REQUIRE(done == tokens);
        std::size_t pages = 0;
        cache.for_each_page(sequence, [&](const PageView& view) {
            ++pages;
            CHECK(purpose_of(view.kind) == Purpose::codes);
            CHECK(view.begin == 0);
            CHECK(view.end == tokens);
            CHECK(test::difference(file.content, {view.bytes.begin(), view.bytes.end()}) == "");
        });
        CHECK(pages == 1);
    }
}

TEST_CASE("a byte that differs is reported with its place, the expected and the found value") {
    std::vector<std::uint8_t> a{1, 2, 3, 4}, b{1, 2, 0x7F, 5};
    CHECK(test::difference(a, a) == "");
    CHECK(test::difference(a, b) == "byte 2 of 4: expected 0x03, found 0x7f; 2 bytes differ");
    b.pop_back();
    CHECK(test::difference(a, b) == "expected 4 bytes, found 3");
}
