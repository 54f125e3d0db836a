/// The GGUF reader: what it reads, what it refuses, and that no damage brings it down.
#include <sys/resource.h>
#include <sys/stat.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <random>
#include <string>
#include <utility>

#include "catch.hpp"
#include "error.hpp"
#include "folder.hpp"
#include "ggml_types.hpp"
#include "gguf.hpp"
#include "gguf_writer.hpp"

using namespace llm;
using namespace llm::test;

namespace {

std::string refusal(const Bytes& file) {
    return message<Error>([&] { Gguf::parse(file, "test.gguf"); });
}

std::string refusal(const GgufWriter& file) { return refusal(file.bytes()); }

Bytes random_bytes(std::size_t n, unsigned seed) {
    std::mt19937 random(seed);
    Bytes bytes(n);
    for (auto& byte : bytes) byte = static_cast<std::byte>(random() & 255);
    return bytes;
}

unsigned at(const Bytes& bytes, std::size_t i) { return std::to_integer<unsigned>(bytes[i]); }

/// f16 by its definition: (-1)^s 2^(e - 15) (1 + m / 1024), subnormal (-1)^s 2^-14 m / 1024
double naive_half(unsigned low, unsigned high) {
    const unsigned bits = low | high << 8, exponent = bits >> 10 & 31, mantissa = bits & 1023;
    const double sign = bits >> 15 ? -1 : 1;
    if (exponent == 31)
        return mantissa ? std::numeric_limits<double>::quiet_NaN() : sign * std::numeric_limits<double>::infinity();
    return exponent ? sign * std::ldexp(1 + mantissa / 1024.0, static_cast<int>(exponent) - 15)
                    : sign * std::ldexp(mantissa / 1024.0, -14);
}

/// The 6-bit scale and min of a group of Q4_K and Q5_K, by the places of their bits.
std::pair<unsigned, unsigned> naive_six_bits(const Bytes& data, std::size_t from, std::size_t group) {
    const auto bits = [&](std::size_t byte, unsigned first, unsigned count) {
        return at(data, from + byte) >> first & ((1u << count) - 1);
    };
    if (group < 4) return {bits(group, 0, 6), bits(group + 4, 0, 6)};
    return {bits(group + 4, 0, 4) + 16 * bits(group - 4, 6, 2), bits(group + 4, 4, 4) + 16 * bits(group, 6, 2)};
}

/// Value i of a tensor, straight from the format's description.
double naive_value(std::uint32_t type, const Bytes& data, std::size_t i) {
    const std::size_t block = i / 32, j = i % 32;
    const auto code = [&](std::size_t base) { return j < 16 ? at(data, base + j) & 15 : at(data, base + j - 16) >> 4; };
    const auto half = [&](std::size_t from) { return naive_half(at(data, from), at(data, from + 1)); };
    switch (type) {
        case 1:
            return half(2 * i);
        case 2:
            return half(18 * block) * (static_cast<double>(code(18 * block + 2)) - 8);
        case 3:
            return half(20 * block) * code(20 * block + 4) + half(20 * block + 2);
        case 6: {  // d * (5 bits - 16)
            const std::size_t base = 22 * block;
            const unsigned fifth = at(data, base + 2 + j / 8) >> (j % 8) & 1;
            return half(base) * (static_cast<double>(code(base + 6) + 16 * fifth) - 16);
        }
        case 7: {  // d * 5 bits + m
            const std::size_t base = 24 * block;
            const unsigned fifth = at(data, base + 4 + j / 8) >> (j % 8) & 1;
            return half(base) * (code(base + 8) + 16 * fifth) + half(base + 2);
        }
        case 8: {
            const int stored = static_cast<int>(at(data, 34 * block + 2 + j));
            return half(34 * block) * (stored < 128 ? stored : stored - 256);
        }
        case 12: {  // d * scale * 4 bits - m * min
            const std::size_t base = i / 256 * 144, group = i % 256 / 32, chunk = i % 256 / 64;
            const unsigned byte = at(data, base + 16 + 32 * chunk + j);
            const auto [scale, min] = naive_six_bits(data, base + 4, group);
            return half(base) * scale * (group % 2 == 0 ? byte % 16 : byte / 16) - half(base + 2) * min;
        }
        case 13: {  // the same with 5 bits
            const std::size_t base = i / 256 * 176, group = i % 256 / 32, chunk = i % 256 / 64;
            const unsigned byte = at(data, base + 48 + 32 * chunk + j), fifth = at(data, base + 16 + j) >> group & 1;
            const auto [scale, min] = naive_six_bits(data, base + 4, group);
            return half(base) * scale * ((group % 2 == 0 ? byte % 16 : byte / 16) + 16 * fifth) - half(base + 2) * min;
        }
        case 14: {  // d * scale * (6 bits - 32); value i of 128: low bits by i % 64, their half by i / 64
            const std::size_t base = i / 256 * 210, k = i % 256, n = k % 128;
            const unsigned low = at(data, base + k / 128 * 64 + n % 64), high = at(data, base + 128 + k / 128 * 32 + j);
            const unsigned six = (n < 64 ? low % 16 : low / 16) + 16 * (high / (1u << (n / 32 * 2)) % 4);
            const int scale = static_cast<int>(at(data, base + 192 + k / 16));
            return half(base + 208) * (scale < 128 ? scale : scale - 256) * (static_cast<double>(six) - 32);
        }
        case 30:  // the upper half of an f32
            return static_cast<double>(
                std::bit_cast<float>(static_cast<std::uint32_t>(at(data, 2 * i) | at(data, 2 * i + 1) << 8) << 16));
        default:
            FAIL("no such type");
            return 0;
    }
}

/// A file with a bit of everything.
GgufWriter mixed(std::uint32_t version = 3) {
    GgufWriter file(version);
    file.number("u8", 0, std::uint8_t{200}).number("i8", 1, std::int8_t{-100}).number("u16", 2, std::uint16_t{60000});
    file.number("i16", 3, std::int16_t{-30000}).u32("u32", 4000000000u).number("i32", 5, std::int32_t{-2000000000});
    file.f32("f32", 1.5f).boolean("bool", true).text("text", "h\u00e9llo").number("u64", 10, std::uint64_t{1} << 63);
    file.number("i64", 11, std::int64_t{-5}).number("f64", 12, 2.25);
    file.texts("texts", {"a", "", "ccc"}).numbers("i32s", 5, std::vector<std::int32_t>{1, -2, 3});
    file.numbers("f32s", 6, std::vector<float>{0.5f, -1}).numbers("bools", 7, std::vector<std::uint8_t>{1, 0, 1});
    file.numbers("none", 10, std::vector<std::uint64_t>{});
    file.tensor("vector", {3}, {1, 2, 3})
        .tensor("q8", {64, 2}, 8, random_bytes(4 * 34, 3))
        .tensor("q4", {32}, 3, random_bytes(20, 4));
    return file;
}

}  // namespace

TEST_CASE("metadata of every type is read", "[gguf]") {
    const auto version = GENERATE(2u, 3u);
    const Gguf file = Gguf::parse(mixed(version).bytes(), "test.gguf");
    CHECK(file.version() == version);
    CHECK(file.integer("u8") == 200);
    CHECK(file.number("i8") == -100);
    CHECK(file.integer("u16") == 60000);
    CHECK(file.number("i16") == -30000);
    CHECK(file.integer("u32") == 4000000000u);
    CHECK(file.number("i32") == -2000000000);
    CHECK(file.number("f32") == 1.5);
    CHECK(file.boolean("bool"));
    CHECK(file.text("text") == "h\u00e9llo");
    CHECK(file.integer("u64") == std::uint64_t{1} << 63);
    CHECK(file.number("i64") == -5);
    CHECK(file.number("f64") == 2.25);
    CHECK(file.texts("texts") == std::vector<std::string>{"a", "", "ccc"});
    CHECK(file.integers("i32s") == std::vector<std::int64_t>{1, -2, 3});
    CHECK(std::get<std::vector<double>>(file.metadata().at("f32s")) == std::vector<double>{0.5, -1});
    CHECK(std::get<std::vector<bool>>(file.metadata().at("bools")) == std::vector<bool>{true, false, true});
    CHECK(file.integers("none").empty());
    CHECK(file.has("u8"));
    CHECK_FALSE(file.has("u9"));
    CHECK(contains(message<Error>([&] { file.integer("u9"); }), "'u9' is missing"));
    CHECK(contains(message<Error>([&] { file.integer("text"); }), "'text' is not an integer"));
    CHECK(contains(message<Error>([&] { file.integer("i64"); }), "'i64' is not an integer of 0 or more"));
    CHECK(contains(message<Error>([&] { file.text("u8"); }), "'u8' is not a text"));
}

TEST_CASE("tensors expand as their formats say", "[gguf]") {
    struct Case {
        std::uint32_t type;
        std::size_t block_values, block_bytes;
    };
    const auto [type, block_values, block_bytes] =
        GENERATE(Case{1, 1, 2}, Case{2, 32, 18}, Case{3, 32, 20}, Case{6, 32, 22}, Case{7, 32, 24}, Case{8, 32, 34},
                 Case{12, 256, 144}, Case{13, 256, 176}, Case{14, 256, 210}, Case{30, 1, 2});
    const std::size_t columns = 768, values = columns * 5;
    const Bytes data = random_bytes(values / block_values * block_bytes, type);
    GgufWriter file;
    file.tensor("first", {1}, {0}).tensor("x", {columns, 5}, type, data);
    const Gguf gguf = Gguf::parse(file.bytes(), "test.gguf");
    const TensorHead& head = gguf.tensor("x");
    REQUIRE(head.shape == std::vector<std::uint64_t>{columns, 5});
    REQUIRE(head.values == values);
    std::vector<float> out(values);
    gguf.expand(head, out);
    for (std::size_t i = 0; i < values; ++i) {
        const double expected = naive_value(type, data, i);
        INFO("type " << ggml_type_name(type) << ", value " << i);
        if (!std::isfinite(expected)) {
            CHECK_FALSE(std::isfinite(out[i]));
            continue;
        }
        // Products of f16 and codes are exact in f32; where something is added, the sum rounds once.
        const bool rounds = type == 3 || type == 7 || type == 12 || type == 13;
        REQUIRE(std::abs(static_cast<double>(out[i]) - expected) <= (rounds ? std::abs(expected) * 0x1p-24 : 0));
    }
}

TEST_CASE("every f16 becomes the f32 of the same value", "[gguf]") {
    std::size_t wrong = 0;
    for (unsigned bits = 0; bits < 65536; ++bits) {
        const double expected = naive_half(bits & 255, bits >> 8),
                     got = half_to_float(static_cast<std::uint16_t>(bits));
        wrong +=
            !(std::isnan(expected) ? std::isnan(got) : expected == got && std::signbit(expected) == std::signbit(got));
    }
    CHECK(wrong == 0);
}

TEST_CASE("other tensor types are refused by name", "[gguf]") {
    GgufWriter k, unknown;
    k.tensor("x", {256}, 10, random_bytes(84, 1));
    unknown.tensor("y", {256}, 4711, random_bytes(176, 1));
    CHECK(
        contains(refusal(k),
                 "tensor 'x' has type Q2_K, which this reader doesn't know; it reads F32, F16, BF16, Q4_0, Q4_1, Q5_0, "
                 "Q5_1, Q8_0, Q4_K, Q5_K, Q6_K"));
    CHECK(contains(refusal(unknown), "tensor 'y' has type number 4711"));
}

TEST_CASE("wrong files are refused with the reason", "[gguf]") {
    const auto patched = [](std::size_t where, auto value) {
        Bytes file = mixed().bytes();
        std::memcpy(file.data() + where, &value, sizeof value);
        return refusal(file);
    };
    constexpr std::uint64_t huge = std::numeric_limits<std::uint64_t>::max();
    CHECK(contains(refusal(Bytes{}), "truncated: the magic"));
    CHECK(contains(patched(0, 'X'), "no GGUF file"));
    CHECK(contains(patched(4, std::uint32_t{1}), "GGUF version 1"));
    CHECK(contains(patched(4, std::uint32_t{3u << 24}), "GGUF version 50331648"));  // big-endian
    CHECK(contains(patched(8, huge), "the tensor list counts 18446744073709551615"));
    CHECK(contains(patched(16, huge), "the metadata counts 18446744073709551615"));
    CHECK(contains(patched(24, huge), "truncated: a metadata key"));
    CHECK(contains(refusal(GgufWriter().raw("k", 99, {})), "metadata 'k' has an unknown type, number 99"));
    CHECK(contains(refusal(GgufWriter().raw("k", 7, Bytes{std::byte{2}})), "metadata 'k' is a bool of value 2"));
    CHECK(contains(refusal(GgufWriter().u32("k", 1).u32("k", 1)), "metadata 'k' occurs twice"));
    const auto array = [](std::uint32_t type, std::uint64_t items) {
        Bytes bytes;
        GgufWriter::put(bytes, type);
        GgufWriter::put(bytes, items);
        return GgufWriter().raw("k", 9, bytes);
    };
    CHECK(contains(refusal(array(9, 1)), "metadata 'k' is an array of arrays"));
    CHECK(contains(refusal(array(77, 1)), "metadata 'k' is an array of an unknown type, number 77"));
    for (const std::uint32_t type : {0u, 4u, 6u, 7u, 8u, 10u})
        CHECK(contains(refusal(array(type, huge)), "metadata 'k' counts"));

    const Bytes row = random_bytes(128, 1);
    CHECK(contains(refusal(GgufWriter().tensor("x", {}, 0, row)), "tensor 'x' has 0 dimensions"));
    CHECK(contains(refusal(GgufWriter().tensor("x", {1, 1, 1, 1, 1}, 0, row)), "tensor 'x' has 5 dimensions"));
    CHECK(contains(refusal(GgufWriter().tensor("x", {0}, 0, row)), "tensor 'x' has an impossible extent, 0"));
    CHECK(contains(refusal(GgufWriter().tensor("x", {huge}, 0, row)), "tensor 'x' has an impossible extent"));
    CHECK(contains(refusal(GgufWriter().tensor("x", {1u << 31, 1u << 31, 4}, 0, row)),
                   "tensor 'x' has an impossible extent"));
    CHECK(contains(refusal(GgufWriter().tensor("x", {33}, 8, row)),
                   "tensor 'x' has rows of 33 values, but Q8_0 comes in blocks of 32"));
    CHECK(contains(refusal(GgufWriter().tensor("x", {1000}, 0, row)), "truncated: tensor 'x'"));
    CHECK(
        contains(refusal(GgufWriter().tensor_at("x", {32}, 0, 16, row)), "tensor 'x' starts at 16, no multiple of 32"));
    CHECK(contains(refusal(GgufWriter().tensor_at("x", {32}, 0, huge - 31, row)), "truncated: tensor 'x'"));
    CHECK(
        contains(refusal(GgufWriter().tensor("x", {32}, 0, row).tensor("x", {32}, 0, row)), "tensor 'x' occurs twice"));
    CHECK(contains(refusal(GgufWriter().tensor("x", {32}, 0, row).tensor_at("y", {32}, 0, 96, row)),
                   "tensors 'x' and 'y' overlap"));
    for (const std::uint32_t alignment : {0u, 24u, 1u << 31})
        CHECK(contains(refusal(GgufWriter().u32("general.alignment", alignment).tensor("x", {32}, 0, row)),
                       "'general.alignment'"));
    CHECK(refusal(GgufWriter(3, 64).u32("general.alignment", 64).tensor("x", {32}, 0, row)).empty());
    CHECK(contains(message<Error>([] { Gguf::open("no such file.gguf"); }), "no such file.gguf"));
}

TEST_CASE("what is no regular file, or larger than the memory, is refused at once", "[gguf]") {
    const ::test::Folder folder;
    const std::string fifo = folder / "fifo", large = folder / "large";
    REQUIRE(::mkfifo(fifo.c_str(), 0600) == 0);
    CHECK(message<Error>([&] { Gguf::open(fifo); }) == fifo + ": can't be opened: it is no regular file");
    CHECK(contains(message<Error>([] { Gguf::open("/"); }), "no regular file"));
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // these end the program where memory runs out
    ::test::write_bytes(large, "GGUF");
    std::filesystem::resize_file(large, std::uintmax_t{1} << 40U);  // a hole: it takes no room on the disk
    struct rlimit limit {};
    REQUIRE(::getrlimit(RLIMIT_AS, &limit) == 0);
    struct rlimit less = limit;
    less.rlim_cur = rlim_t{1} << 36U;
    REQUIRE(::setrlimit(RLIMIT_AS, &less) == 0);
    const std::string problem = message<Error>([&] { Gguf::open(large); });
    REQUIRE(::setrlimit(RLIMIT_AS, &limit) == 0);
    CHECK(problem == large + ": takes 1099511627776 bytes, and there is no memory for as many");
#endif
}

TEST_CASE("a file that ends too early is refused at every length", "[gguf]") {
    const Bytes file = mixed().bytes();
    REQUIRE(refusal(file).empty());
    // The last tensor, 20 bytes, is followed by 12 bytes of padding, which may be missing.
    for (std::size_t length = 0; length < file.size() - 12; ++length) {
        INFO("length " << length);
        REQUIRE_FALSE(refusal(Bytes(file.begin(), file.begin() + static_cast<std::ptrdiff_t>(length))).empty());
    }
}

TEST_CASE("flipped bytes give an error or a file, never a crash", "[gguf]") {
    const Bytes original = mixed().bytes();
    std::mt19937 random(1);
    std::size_t refused = 0;
    for (int round = 0; round < 2000; ++round) {
        Bytes file = original;
        for (int flips = 0; flips <= round % 4; ++flips)
            file[random() % file.size()] ^= static_cast<std::byte>(1 + random() % 255);
        try {
            const Gguf gguf = Gguf::parse(file, "test.gguf");
            for (const auto& [name, head] : gguf.tensors()) {
                std::vector<float> out(head.values);
                gguf.expand(head, out);
            }
        } catch (const Error&) {
            ++refused;
        }
    }
    CHECK(refused > 200);
}
