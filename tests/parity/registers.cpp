/// Every operation of the register wrappers against what it is said to do, in plain loops.
#include <array>
#include <cmath>
#include <cstring>
#include <iostream>
#include <limits>
#include <random>
#include <vector>

#include "parity/machines.hpp"
#include "support/catch.hpp"

using namespace xquant;

namespace {

template <class R>
constexpr std::size_t bytes = 4 * R::lanes;

template <class R>
std::vector<float> floats_of(typename R::f32 x) {
    std::vector<float> out(R::lanes);
    R::store(out.data(), x);
    return out;
}

template <class R>
std::vector<std::uint32_t> words_of(typename R::i32 x) {
    std::vector<std::uint32_t> out(R::lanes);
    R::store_i32(out.data(), x);
    return out;
}

class Source {
public:
    template <class R>
    std::vector<float> floats(float reach = 100) {
        std::vector<float> out(R::lanes);
        for (float& value : out) value = (static_cast<float>(random_() >> 8U) * 0x1p-23F - 1) * reach;
        return out;
    }
    template <class R>
    std::vector<std::uint32_t> words() {
        std::vector<std::uint32_t> out(R::lanes);
        for (std::uint32_t& value : out) value = static_cast<std::uint32_t>(random_());
        return out;
    }

private:
    std::mt19937 random_{20251124};
};

std::uint8_t byte_of(const std::vector<std::uint32_t>& words, std::size_t i) {
    return static_cast<std::uint8_t>(words[i / 4] >> (8 * (i % 4)));
}

template <class R>
void check_floats() {
    Source source;
    const auto a = source.floats<R>(), b = source.floats<R>(), c = source.floats<R>();
    const auto x = R::load(a.data()), y = R::load(b.data()), z = R::load(c.data());
    for (std::size_t i = 0; i < R::lanes; ++i) {
        INFO(R::name << ", lane " << i);
        CHECK(floats_of<R>(R::add(x, y))[i] == a[i] + b[i]);
        CHECK(floats_of<R>(R::sub(x, y))[i] == a[i] - b[i]);
        CHECK(floats_of<R>(R::mul(x, y))[i] == a[i] * b[i]);
        CHECK(floats_of<R>(R::fma(x, y, z))[i] == std::fma(a[i], b[i], c[i]));
        CHECK(floats_of<R>(R::minimum(x, y))[i] == std::min(a[i], b[i]));
        CHECK(floats_of<R>(R::maximum(x, y))[i] == std::max(a[i], b[i]));
        CHECK(floats_of<R>(R::splat(a[0]))[i] == a[0]);
        CHECK(floats_of<R>(R::zero())[i] == 0.0F);
        CHECK(floats_of<R>(R::as_f32(R::as_i32(x)))[i] == a[i]);
    }
    // Where either is NaN, both give the second.
    const auto nan = R::splat(std::numeric_limits<float>::quiet_NaN());
    for (std::size_t i = 0; i < R::lanes; ++i) {
        CHECK(std::isnan(floats_of<R>(R::maximum(x, nan))[i]));
        CHECK(std::isnan(floats_of<R>(R::minimum(x, nan))[i]));
        CHECK(floats_of<R>(R::maximum(nan, x))[i] == a[i]);
        CHECK(floats_of<R>(R::minimum(nan, x))[i] == a[i]);
    }
    CHECK(R::reduce_min(x) == *std::min_element(a.begin(), a.end()));
    CHECK(R::reduce_max(x) == *std::max_element(a.begin(), a.end()));
    double sum = 0;
    for (const float value : a) sum += static_cast<double>(value);
    CHECK(std::abs(static_cast<double>(R::reduce_add(x)) - sum) < 1e-3);

    typename R::f32 rows[R::lanes];
    std::vector<double> sums(R::lanes);
    for (std::size_t r = 0; r < R::lanes; ++r) {
        const auto row = source.floats<R>();
        rows[r] = R::load(row.data());
        for (const float value : row) sums[r] += static_cast<double>(value);
    }
    typename R::f32 fours[R::lanes / 4];
    for (std::size_t f = 0; f < R::lanes / 4; ++f) fours[f] = R::sum_four(rows + 4 * f);
    const auto summed = floats_of<R>(R::sum_fours(fours));
    for (std::size_t r = 0; r < R::lanes; ++r) CHECK(std::abs(static_cast<double>(summed[r]) - sums[r]) < 1e-3);

    if constexpr (R::lanes >= 8) {
        const auto half_sums = floats_of<R>(R::sum_halves(fours));
        for (std::size_t r = 0; r < R::lanes; ++r) {
            const auto row = floats_of<R>(rows[r / 2]);
            double half = 0;
            for (std::size_t i = 0; i < R::lanes / 2; ++i) half += static_cast<double>(row[r % 2 * (R::lanes / 2) + i]);
            CHECK(std::abs(static_cast<double>(half_sums[r]) - half) < 1e-3);
        }
    }

    for (std::size_t n = 0; n <= R::lanes; ++n) {
        const auto part = floats_of<R>(R::load_first(a.data(), n));
        std::vector<float> stored(R::lanes, 7.0F);
        R::store_first(stored.data(), x, n);
        for (std::size_t i = 0; i < R::lanes; ++i) {
            CHECK(part[i] == (i < n ? a[i] : 0.0F));
            CHECK(stored[i] == (i < n ? a[i] : 7.0F));
        }
    }

    // Halves round to nearest, ties to even, as to_f16 does; subnormal ones and the largest, too.
    std::vector<float> special = source.floats<R>(1e-6F);
    special[0] = 65504;
    special[1] = 0x1.002p0F;  // a tie
    special[2] = 0x1.006p0F;  // a tie
    special[3] = -0.0F;
    std::vector<f16> halves(R::lanes);
    R::store_f16(halves.data(), R::load(special.data()));
    const auto back = floats_of<R>(R::load_f16(halves.data()));
    std::vector<bf16> rounded(R::lanes);
    for (std::size_t i = 0; i < R::lanes; ++i) rounded[i] = to_bf16(a[i]);
    const auto from_bf16 = floats_of<R>(R::load_bf16(rounded.data()));
    for (std::size_t i = 0; i < R::lanes; ++i) {
        CHECK(halves[i].bits == to_f16(special[i]).bits);
        CHECK(back[i] == to_float(halves[i]));
        CHECK(from_bf16[i] == to_float(rounded[i]));
    }
}

template <class R>
void check_words() {
    Source source;
    const auto a = source.words<R>(), b = source.words<R>(), c = source.words<R>(), d = source.words<R>();
    const auto x = R::load_i32(a.data()), y = R::load_i32(b.data()), z = R::load_i32(c.data()),
               w = R::load_i32(d.data());
    std::vector<std::uint32_t> by(R::lanes);
    for (std::size_t i = 0; i < R::lanes; ++i) by[i] = static_cast<std::uint32_t>(5 * i % 32);
    std::vector<float> numbers(R::lanes);
    for (std::size_t i = 0; i < R::lanes; ++i) numbers[i] = static_cast<float>(i) - 3.5F;  // ties
    for (std::size_t i = 0; i < R::lanes; ++i) {
        INFO(R::name << ", lane " << i);
        CHECK(words_of<R>(R::add_i32(x, y))[i] == a[i] + b[i]);
        CHECK(words_of<R>(R::bits_and(x, y))[i] == (a[i] & b[i]));
        CHECK(words_of<R>(R::bits_or(x, y))[i] == (a[i] | b[i]));
        CHECK(words_of<R>(R::shift_left(x, 7))[i] == a[i] << 7U);
        CHECK(words_of<R>(R::shift_right(x, 9))[i] == a[i] >> 9U);
        CHECK(words_of<R>(R::shift_right_each(x, R::load_i32(by.data())))[i] == a[i] >> by[i]);
        CHECK(words_of<R>(R::splat_i32(-5))[i] == static_cast<std::uint32_t>(-5));
        CHECK(words_of<R>(R::zero_i32())[i] == 0U);
        CHECK(floats_of<R>(R::to_f32(x))[i] == static_cast<float>(static_cast<std::int32_t>(a[i])));
        CHECK(static_cast<std::int32_t>(words_of<R>(R::round(R::load(numbers.data())))[i]) ==
              static_cast<std::int32_t>(std::nearbyint(numbers[i])));
        CHECK(words_of<R>(R::load_u8(reinterpret_cast<const std::uint8_t*>(a.data())))[i] == byte_of(a, i));
    }
    std::vector<std::uint8_t> low(R::lanes);
    std::vector<std::uint32_t> small(R::lanes);
    for (std::size_t i = 0; i < R::lanes; ++i) small[i] = a[i] & 0xFFU;
    R::store_u8(low.data(), R::load_i32(small.data()));
    for (std::size_t i = 0; i < R::lanes; ++i) CHECK(low[i] == small[i]);

    std::vector<std::int32_t> signed_words(bytes<R>);
    typename R::i32 four[4];
    for (std::size_t i = 0; i < bytes<R>; ++i) signed_words[i] = static_cast<std::int32_t>(byte_of(a, i)) - 128;
    for (std::size_t r = 0; r < 4; ++r) four[r] = R::load_i32(signed_words.data() + r * R::lanes);
    std::vector<std::uint8_t> packed(bytes<R>);
    R::store_bytes(packed.data(), four);
    for (std::size_t i = 0; i < bytes<R>; ++i) CHECK(packed[i] == static_cast<std::uint8_t>(signed_words[i]));

    for (std::size_t i = 0; i < bytes<R>; ++i) {
        signed_words[i] =
            255 * static_cast<std::int32_t>(byte_of(b, i)) + static_cast<std::int32_t>(byte_of(c, i)) - 32640;
        if (i < 4) signed_words[i] = std::array{-32640, 32639, 127, 128}[i];
    }
    for (std::size_t r = 0; r < 4; ++r) four[r] = R::load_i32(signed_words.data() + r * R::lanes);
    std::vector<std::uint8_t> upper(bytes<R>), lower(bytes<R>);
    R::store_two_bytes(upper.data(), lower.data(), four);
    for (std::size_t i = 0; i < bytes<R>; ++i) {
        CHECK(256 * static_cast<std::int8_t>(upper[i]) + static_cast<std::int8_t>(lower[i]) == signed_words[i]);
    }

    const auto repeats = [&](auto size, typename R::i32 found) {
        const auto words = words_of<R>(found);
        for (std::size_t i = 0; i < bytes<R>; ++i) CHECK(byte_of(words, i) == byte_of(a, i % size()));
    };
    repeats(std::integral_constant<std::size_t, 4>{}, R::template repeat<4>(a.data()));
    repeats(std::integral_constant<std::size_t, 8>{}, R::template repeat<8>(a.data()));
    repeats(std::integral_constant<std::size_t, 16>{}, R::template repeat<16>(a.data()));
    if constexpr (bytes<R> >= 32) {
        repeats(std::integral_constant<std::size_t, 32>{}, R::template repeat<32>(a.data()));
    }
    repeats(std::integral_constant<std::size_t, bytes<R>>{}, R::template repeat<bytes<R>>(a.data()));

    typename R::i32 mixed[4];
    R::interleave_bytes(x, y, z, w, mixed);
    for (std::size_t t = 0; t < bytes<R>; ++t) {
        const std::uint32_t word = words_of<R>(mixed[t / R::lanes])[t % R::lanes];
        CHECK(word == (byte_of(a, t) | byte_of(b, t) << 8U | byte_of(c, t) << 16U |
                       static_cast<std::uint32_t>(byte_of(d, t)) << 24U));
    }

    const auto halved = words_of<R>(R::load_halves(a.data(), b.data() + R::lanes / 2));
    for (std::size_t i = 0; i < R::lanes / 2; ++i) {
        CHECK(halved[i] == a[i]);
        CHECK(halved[R::lanes / 2 + i] == b[R::lanes / 2 + i]);
    }

    R::interleave_halves(x, y, mixed);
    for (std::size_t t = 0; t < bytes<R> / 2; ++t) {
        const std::uint32_t word = words_of<R>(mixed[t / R::lanes])[t % R::lanes];
        const std::size_t half = bytes<R> / 2;
        CHECK(word == (byte_of(a, t) | byte_of(a, half + t) << 8U | byte_of(b, t) << 16U |
                       static_cast<std::uint32_t>(byte_of(b, half + t)) << 24U));
    }

    typename R::i32 rows[R::lanes];
    std::vector<std::vector<std::uint32_t>> matrix;
    for (std::size_t i = 0; i < R::lanes; ++i) {
        matrix.push_back(source.words<R>());
        rows[i] = R::load_i32(matrix[i].data());
    }
    R::transpose(rows);
    for (std::size_t i = 0; i < R::lanes; ++i) {
        for (std::size_t j = 0; j < R::lanes; ++j) CHECK(words_of<R>(rows[i])[j] == matrix[j][i]);
    }

    for (std::size_t i = 0; i < 4; ++i) rows[i] = R::load_i32(matrix[i].data());
    R::transpose_fours(rows);
    for (std::size_t i = 0; i < 4; ++i) {
        for (std::size_t j = 0; j < R::lanes; ++j) {
            CHECK(words_of<R>(rows[i])[j] == matrix[j % 4][j / 4 * 4 + i]);
        }
    }
}

/// Runs as long as allowed, of the largest codes and weights: nothing may overflow on the way.
template <class R>
void check_dot() {
    Source source;
    for (unsigned bits = 1; bits <= R::dot_bits; ++bits) {
        const std::uint32_t mask = ((1U << bits) - 1U) * 0x01010101U;
        for (const bool largest : {false, true}) {
            for (const std::size_t steps : {std::size_t{1}, std::size_t{3}, std::size_t{8}, std::size_t{32}}) {
                std::vector<std::int64_t> expected(R::lanes);
                auto sum = R::zero_i32(), part = R::zero_i32();
                std::size_t in_run = 0;
                for (std::size_t s = 0; s < steps; ++s) {
                    auto codes = source.words<R>(), weights = source.words<R>();
                    for (std::size_t i = 0; i < R::lanes; ++i) {
                        codes[i] = largest ? mask : codes[i] & mask;
                        if (largest) weights[i] = i % 2 == 0 ? 0x7F7F7F7FU : 0x80808080U;
                        for (unsigned b = 0; b < 32; b += 8) {
                            expected[i] += static_cast<std::int64_t>(codes[i] >> b & 0xFFU) *
                                           static_cast<std::int8_t>(static_cast<std::uint8_t>(weights[i] >> b));
                        }
                    }
                    part = R::dot(part, R::load_i32(codes.data()), R::load_i32(weights.data()));
                    if (++in_run == R::dot_run(bits) || s + 1 == steps) {
                        sum = R::add_i32(sum, R::dot_end(part));
                        part = R::zero_i32();
                        in_run = 0;
                    }
                }
                const auto found = words_of<R>(sum);
                for (std::size_t i = 0; i < R::lanes; ++i) {
                    INFO(R::name << ", " << bits << " bits, " << steps << " steps, lane " << i);
                    CHECK(static_cast<std::int32_t>(found[i]) == expected[i]);
                }
            }
        }
    }
}

}  // namespace

TEST_CASE("register wrappers do what is said of them") {
    parity::for_each_registers([]<class R>() {
        static_assert(backend::register_wrapper<R>);
        check_floats<R>();
        check_words<R>();
        check_dot<R>();
    });
}

TEST_CASE("the best backend is the one that the flags allow") {
    std::cerr << "backend::best is " << backend::best::name << "; " << parity::missing_machines() << "\n";
#if defined(XQUANT_FORCE_SCALAR)
    CHECK(std::string(backend::best::name) == "scalar");
#elif defined(XQUANT_HAS_AMX)
    CHECK(std::string(backend::best::name) == "amx_int8");
    CHECK(std::string(abi_name()) == "abi_avx512_amx");
#elif defined(XQUANT_HAS_AVX512)
    CHECK(std::string(backend::best::name) == "avx512_int8");
#if defined(__AVX512VNNI__)
    CHECK(std::string(abi_name()) == "abi_avx512_vnni");
#else
    CHECK(std::string(abi_name()) == "abi_avx512");
#endif
#elif defined(XQUANT_HAS_AVX2)
    CHECK(std::string(backend::best::name) == "avx2_int8");
    CHECK(std::string(abi_name()) == "abi_avx2");
#elif defined(XQUANT_HAS_NEON)
    CHECK(std::string(backend::best::name) == "neon_int8");
#if defined(__ARM_FEATURE_MATMUL_INT8)
    CHECK(std::string(abi_name()) == "abi_neon_i8mm");
#elif defined(__ARM_FEATURE_DOTPROD)
    CHECK(std::string(abi_name()) == "abi_neon_dotprod");
#else
    CHECK(std::string(abi_name()) == "abi_neon");
#endif
#else
    CHECK(std::string(backend::best::name) == "scalar");
#endif
}
