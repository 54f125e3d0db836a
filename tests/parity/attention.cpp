/// Attention on every backend against the scalar one of the same arithmetic, and what 8-bit products change.
#include "parity/attention.hpp"

#include <cmath>
#include <iostream>
#include <limits>

#include "parity/distance.hpp"
#include "parity/machines.hpp"
#include "support/catch.hpp"

using namespace parity;

namespace {

#if defined(XQUANT_CROSS_COMPILED)
// An emulated processor takes tens of times as long: one case of each kernel, and everything at once.
const std::vector<Case>& cases() {
    static const std::vector<Case> all{
        {"GQA, one query", {192, 6, 2, 64}, 300, 1},
        {"GQA, head_dim 128, halves", {192, 4, 1, 128}, 200, 2, false},
        {"odd head_dim 7", {40, 4, 2, 7}, 200, 1},
        {"many queries, head_dim 80", {120, 3, 1, 80}, 150, 20, false},
        {"everything at once", {96, 6, 2, 32}, 200, 1, true, true, 150, true},
    };
    return all;
}
#else
const std::vector<Case>& cases() {
    static const std::vector<Case> all{
        {"GQA, one query", {192, 6, 2, 64}, 700, 1},
        {"GQA, halves", {192, 6, 2, 64}, 389, 1, false},
        {"MHA, verification of 3", {256, 4, 4, 64}, 300, 3},
        {"MQA, 8 heads, head_dim 256", {512, 8, 1, 256}, 200, 1},
        {"GQA, head_dim 128", {512, 4, 1, 128}, 260, 2},
        {"head_dim 80", {240, 3, 1, 80}, 270, 1},
        {"head_dim 96", {192, 2, 1, 96}, 270, 1},
        {"odd head_dim 7", {40, 4, 2, 7}, 200, 1},
        {"33 pairs, head_dim 66", {264, 4, 2, 66}, 300, 1},
        {"many queries", {192, 6, 2, 64}, 200, 70},
        {"many queries, head_dim 128, halves", {512, 4, 1, 128}, 260, 40, false},
        {"many queries, head_dim 80", {240, 3, 1, 80}, 200, 30, false},
        {"many queries, head_dim 256", {512, 2, 1, 256}, 150, 37},
        {"many queries, a window", {192, 6, 2, 64}, 300, 60, true, false, 150},
        {"many queries, everything at once", {192, 6, 2, 64}, 150, 30, true, true, 100, true},
        {"a norm of K", {192, 6, 2, 64}, 300, 1, true, true},
        {"a norm of K, head_dim 128", {512, 4, 1, 128}, 200, 4, false, true},
        {"a norm of K, many queries", {192, 4, 1, 64}, 200, 40, true, true},
        {"a window", {192, 6, 2, 64}, 500, 2, true, false, 150},
        {"everything at once", {192, 6, 2, 64}, 300, 1, true, true, 200, true},
        {"nothing in the cache", {192, 6, 2, 64}, 0, 5},
        {"chunks", {192, 6, 2, 64}, 500, 2, true, false, 0, false, 0, 150},
        {"weights in f16", {192, 6, 2, 64}, 300, 1, true, false, 0, true, 0, 0, xquant::WeightType::f16},
        {"weights in bf16, many queries",
         {192, 6, 2, 64},
         200,
         40,
         false,
         false,
         0,
         true,
         0,
         0,
         xquant::WeightType::bf16},
        {"weights in 8 bits, head_dim 80", {200, 2, 1, 80}, 270, 3, true, true, 0, false, 0, 0, xquant::WeightType::q8},
        {"weights in 8 bits, groups over two heads",
         {60, 4, 2, 20},
         200,
         2,
         true,
         true,
         0,
         false,
         0,
         0,
         xquant::WeightType::q8},
        {"chunks, many queries", {192, 6, 2, 64}, 300, 60, true, false, 0, false, 0, 100},
    };
    return all;
}
#endif

/// Whether the compiler makes one instruction of a product and a sum: not where the processor has none, nor at -O1.
bool fuses() {
    volatile float given = 1 + 0x1p-12F, less = 1 + 0x1p-11F;
    const float x = given, y = less;
    return x * x - y != 0;  // the product is 1 + 2^-11 + 2^-24, and 1 + 2^-11 once it is rounded
}

void check(const char* name, Run run, Run run_int8) {
    for (const Case& c : cases()) {
        for (int form = 0; form < static_cast<int>(Form::count); ++form) {
            INFO(name << ", " << c.name << ", form " << form);
            const Form which = static_cast<Form>(form);
            // Emulated registers always fuse products and sums. Where scalar code does not, rows are projected with
            // other roundings, and some are stored as the neighbouring code.
            const double rounded = fuses() ? 2e-4 : 2e-3;
            const double bound = which == Form::exact ? 5e-6 : rounded;
            // The vector forms round the weights of V, too: to 15 bits of the largest in 128 tokens.
            const double bound_int8 = which == Form::exact ? 5e-6 : rounded + 3e-4;
            CHECK(distance(run(which, c), run_scalar(which, c)) < bound);
            CHECK(distance(run_int8(which, c), run_scalar_int8(which, c)) < bound_int8);
        }
    }
}

}  // namespace

#if !defined(XQUANT_CROSS_COMPILED)
TEST_CASE("attention on emulated registers equals scalar attention") {
    check("emulated", run_emulated, run_emulated_int8);
}
#endif

#if defined(XQUANT_HAS_AVX2)
TEST_CASE("attention on AVX2 equals scalar attention") { check("avx2", run_avx2, run_avx2_int8); }
#endif

#if defined(XQUANT_HAS_AVX512)
TEST_CASE("attention on AVX-512 equals scalar attention") { check("avx512", run_avx512, run_avx512_int8); }
#endif

#if defined(XQUANT_HAS_NEON)
TEST_CASE("attention on NEON equals scalar attention") { check("neon", run_neon, run_neon_int8); }
#endif

#if !defined(XQUANT_CROSS_COMPILED)
TEST_CASE("attention by the kernels for GPUs, on an emulated one, equals scalar attention") {
    std::cerr << "no GPU takes part: the kernels of backend/cuda run on emulated_gpu\n";
    for (const Case& c : cases()) {
        if (c.chunk > 0) continue;  // refused there
        for (int form = 0; form < static_cast<int>(Form::count); ++form) {
            INFO("emulated_cuda, " << c.name << ", form " << form);
            const Form which = static_cast<Form>(form);
            const double off = distance(run_emulated_cuda(which, c), run_scalar(which, c));
            // Queries, z, A, K and P are rounded to f16. No rounding at all would mean that something else ran.
            CHECK(off < 1e-3);
            CHECK(off > 1e-6);
        }
    }
}

TEST_CASE("a query that is not finite makes NaN of its head, and of nothing else, on every backend") {
    std::cerr << missing_machines() << "\n";
    struct Machine {
        const char* name;
        Run run;
    };
    const std::vector<Machine> machines {
        {"scalar", run_scalar}, {"scalar_int8", run_scalar_int8}, {"emulated", run_emulated},
            {"emulated_int8", run_emulated_int8},
#if defined(XQUANT_HAS_AVX2)
            {"avx2", run_avx2}, {"avx2_int8", run_avx2_int8},
#endif
#if defined(XQUANT_HAS_AVX512)
            {"avx512", run_avx512}, {"avx512_int8", run_avx512_int8},
#endif
#if defined(XQUANT_HAS_NEON)
            {"neon", run_neon}, {"neon_int8", run_neon_int8},
#endif
            {"emulated_cuda", run_emulated_cuda}, {"emulated_cuda_int8", run_emulated_cuda_int8},
    };
    const std::vector<Case> some{
        {"one query", {192, 6, 2, 64}, 150, 1},
        {"many queries, halves", {192, 6, 2, 64}, 150, 20, false},
        {"everything at once", {192, 6, 2, 64}, 150, 2, true, true, 100, true},
        {"nothing in the cache", {192, 6, 2, 64}, 0, 2},
    };
    constexpr float infinity = std::numeric_limits<float>::infinity();
    for (const Machine& machine : machines) {
        for (Case c : some) {
            for (int form = 0; form < static_cast<int>(Form::count); ++form) {
                const Form which = static_cast<Form>(form);
                c.bad_query = 0;
                const std::vector<float> clean = machine.run(which, c);
                for (const float bad : {std::numeric_limits<float>::quiet_NaN(), infinity, -infinity}) {
                    INFO(machine.name << ", " << c.name << ", form " << form << ", " << bad);
                    c.bad_query = bad;
                    const std::vector<float> found = machine.run(which, c);
                    REQUIRE(found.size() == clean.size());
                    const std::size_t end = c.shape.heads * c.shape.head_dim, begin = end - c.shape.head_dim;
                    std::size_t missed = 0, touched = 0;
                    for (std::size_t i = 0; i < found.size(); ++i) {
                        const bool faulty = i >= begin && i < end;
                        missed += faulty && !std::isnan(found[i]) ? 1U : 0U;
                        touched += !faulty && found[i] != clean[i] ? 1U : 0U;
                    }
                    CHECK(missed == 0);
                    CHECK(touched == 0);
                }
            }
        }
    }
}

TEST_CASE("the kernels for GPUs take 8-bit products where codes lie along a token, and change little by them") {
    const std::vector<Case> some{
        {"GQA, two queries", {192, 6, 2, 64}, 300, 2},
        {"head_dim 80, halves", {240, 3, 1, 80}, 270, 1, false},
        {"head_dim 256", {512, 2, 1, 256}, 200, 1},
        {"everything at once", {192, 6, 2, 64}, 300, 1, true, true, 200, true},
    };
    for (const Case& c : some) {
        const std::vector<float> exact = run_scalar(Form::exact, c);
        for (const Form form : {Form::x4, Form::x4_group64, Form::x4_group32}) {
            INFO("emulated_cuda_int8, " << c.name << ", form " << static_cast<int>(form));
            const std::vector<float> in_f32 = run_scalar(form, c);
            const double change = distance(run_emulated_cuda_int8(form, c), in_f32);
            // f16 alone is below 1e-3.
            CHECK(change > 1e-3);
            CHECK(change < 0.03);
            CHECK(change < 0.6 * distance(in_f32, exact));
        }
        for (const Form form : {Form::f16, Form::kv4, Form::head4, Form::kivi4}) {
            INFO("emulated_cuda_int8, " << c.name << ", form " << static_cast<int>(form));
            CHECK(distance(run_emulated_cuda_int8(form, c), run_emulated_cuda(form, c)) == 0);
        }
    }
}

TEST_CASE(
    "8-bit products change little, and only where codes have 5 bits or fewer and meet a matrix, or slow pairs, or the "
    "queries themselves") {
    std::cerr << missing_machines() << "\n";
    const Case c{"", {192, 6, 2, 64}, 700, 1};
    for (const Form form : {Form::f16, Form::kv8, Form::q8_0, Form::head8, Form::nf4}) {
        CHECK(distance(run_scalar_int8(form, c), run_scalar(form, c)) == 0);
    }
    const std::vector<float> exact = run_scalar(Form::exact, c);
    for (const Form form : {Form::head3, Form::head4, Form::head4_group32, Form::head5, Form::split4, Form::x4,
                            Form::kivi4, Form::kv4, Form::q4_0_hadamard}) {
        const std::vector<float> in_f32 = run_scalar(form, c);
        const double change = distance(run_scalar_int8(form, c), in_f32);
        INFO("form " << static_cast<int>(form));
        CHECK(change > 1e-4);
        CHECK(change < 0.03);
        CHECK(change < 0.6 * distance(in_f32, exact));
    }
}
#endif
