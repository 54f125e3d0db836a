/// xquant-mpi: one decoder's caches on several processes, beside one process that has them all.
///
///   mpirun -n 4 xquant-mpi --split heads --schemes kv4,svd_head4
///
/// Exit status 1 where an answer is not that of one process: bit for bit, or for --join sum within the bound that is
/// printed; 2 for what cannot be run.
#include <mpi.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

#include "ranks.hpp"

namespace {

using mpi::Group;
using mpi::Join;
using mpi::Share;
using mpi::Split;

struct Options {
    std::vector<std::string> schemes{"f16", "kv4", "kivi4", "svd_head4", "x4"};
    std::string split = "layers", join = "gather";
    std::size_t prompt = 256, tokens = 16, head_dim = mpi::Shape().head_dim;
    int refuse = -1;
};

/// Sums in another order differ by roundings of f32, and these may move codes by one. Zeros, or another token's answer,
/// are off by 1 or more.
constexpr double bound_of_sums = 0.002;

/// The rank whose cache is to refuse a step has this budget, and the step these tokens.
constexpr std::size_t small_budget = std::size_t{4} << 20U, large_step = 8192;

/// The prompt in steps of 100 tokens, then one token after the other: the hidden state is the next token's X. Returns
/// all hidden states, on ranks that have them. refused: a step that one rank has to refuse comes in between.
std::vector<float> run(Share& share, const mpi::Shape& shape, const Options& o, bool refused) {
    const std::size_t D = shape.width;
    const std::vector<float> prompt = mpi::make_prompt(shape, o.prompt);
    std::vector<float> all;
    const auto take = [&](const std::vector<float>& x) {
        std::vector<float> hidden = share.step(x, x.size() / D);
        if (hidden.empty()) throw std::runtime_error("a step was refused: " + share.refusal());
        all.insert(all.end(), hidden.begin(), hidden.end());
        return hidden;
    };
    for (std::size_t t = 0; t < o.prompt; t += 100) {
        const std::size_t n = std::min<std::size_t>(100, o.prompt - t);
        take({prompt.begin() + static_cast<std::ptrdiff_t>(t * D),
              prompt.begin() + static_cast<std::ptrdiff_t>((t + n) * D)});
    }
    if (refused) {
        const xquant::Bytes before = share.bytes();
        const std::size_t tokens = share.tokens();
        if (!share.step(std::vector<float>(large_step * D), large_step).empty())
            throw std::runtime_error("no rank refused the large step");
        if (share.tokens() != tokens || share.bytes().stored() != before.stored())
            throw std::runtime_error("a step that was refused has changed a cache");
    }
    std::vector<float> x(D);
    for (std::size_t i = 0; i < o.tokens; ++i) {
        const std::vector<float> last(all.end() - static_cast<std::ptrdiff_t>(D), all.end());
        mpi::norm(last.data(), 1, D, x.data());
        take(x);
    }
    return all;
}

struct Row {
    unsigned long first_layer = 0, end_layer = 0, first_head = 0, end_head = 0, tokens = 0, stored = 0, weights = 0;
};

void print(const char* name, const Row& row, unsigned long whole) {
    std::printf("%-12s%5lu -%3lu%7lu -%3lu%9lu%14lu%13.1f %%%14lu\n", name, row.first_layer, row.end_layer - 1,
                row.first_head, row.end_head - 1, row.tokens, row.stored,
                100 * static_cast<double>(row.stored) / static_cast<double>(whole), row.weights);
}

Row row_of(const Share& share) {
    const mpi::Part& part = share.part();
    return {part.first_layer, part.end_layer,         part.first_head,      part.end_head,
            share.tokens(),   share.bytes().stored(), share.bytes().weights};
}

/// Prints how far they are apart; whether it is little enough: with sums, the bound, else nothing at all.
bool compare(const std::vector<float>& one, const std::vector<float>& many, bool sums) {
    if (one.size() != many.size()) throw std::runtime_error("there are not as many answers as of one process");
    if (std::memcmp(one.data(), many.data(), one.size() * sizeof(float)) == 0) {
        std::printf("answers     equal bit for bit\n\n");
        return true;
    }
    double difference = 0, norm = 0;
    for (std::size_t i = 0; i < one.size(); ++i) {
        difference += (double{one[i]} - double{many[i]}) * (double{one[i]} - double{many[i]});
        norm += double{one[i]} * double{one[i]};
    }
    const double relative = std::sqrt(difference / norm), bound = sums ? bound_of_sums : 0;
    std::printf("answers     differ by %.2g of their norm, bound %g%s\n\n", relative, bound,
                relative <= bound ? "" : ": TOO MUCH");
    return relative <= bound;
}

bool run_scheme(const std::string& scheme, const Options& o, const Group& world) {
    mpi::Plan plan{
        {}, scheme, o.split == "layers" ? Split::layers : Split::heads, o.join == "sum" ? Join::sum : Join::gather, 0};
    if (world.rank == o.refuse) plan.budget = small_budget;
    Share share(plan, world);
    const bool refused = o.refuse >= 0;
    const std::vector<float> many = run(share, plan.shape, o, refused);
    const Row own = row_of(share);
    constexpr int numbers = sizeof(Row) / sizeof(unsigned long);
    std::vector<Row> rows(static_cast<std::size_t>(world.size));
    MPI_Gather(&own, numbers, MPI_UNSIGNED_LONG, rows.data(), numbers, MPI_UNSIGNED_LONG, 0, world.comm);
    int right = 1;
    if (world.rank == 0) {
        plan.budget = 0;
        Share whole(plan, Group(MPI_COMM_SELF));
        const std::vector<float> one = run(whole, plan.shape, o, false);
        const Row all = row_of(whole);
        const bool sums = plan.split == Split::heads && plan.join == Join::sum;
        std::printf("scheme %s, %s split over %d ranks%s\n", scheme.c_str(), o.split.c_str(), world.size,
                    sums ? ", products added up" : "");
        std::printf("%-12s%11s%12s%9s%14s%15s%14s\n", "", "layers", "kv heads", "tokens", "cache, bytes",
                    "of the whole", "weights");
        Row sum = all;
        sum.stored = sum.weights = 0;
        for (std::size_t r = 0; r < rows.size(); ++r) {
            print(("rank " + std::to_string(r)).c_str(), rows[r], all.stored);
            sum.stored += rows[r].stored;
            sum.weights += rows[r].weights;
        }
        print("all ranks", sum, all.stored);
        print("one process", all, all.stored);
        if (refused)
            std::printf("refused     rank %d had no room for a step of %zu tokens: no rank took it\n", o.refuse,
                        large_step);
        right = compare(one, many, sums) ? 1 : 0;
        std::fflush(stdout);
    }
    MPI_Bcast(&right, 1, MPI_INT, 0, world.comm);
    return right == 1;
}

int run_all(int argc, char** argv) {
    Options o;
    CLI::App app{"One decoder's caches on several processes, beside one process that has them all."};
    app.add_option("--schemes", o.schemes, "schemes, with commas between")->delimiter(',')->capture_default_str();
    app.add_option("--split", o.split, "what is divided among ranks")
        ->check(CLI::IsMember({"layers", "heads"}))
        ->capture_default_str();
    app.add_option("--join", o.join, "how heads' output comes together")
        ->check(CLI::IsMember({"gather", "sum"}))
        ->capture_default_str();
    app.add_option("--prompt", o.prompt, "tokens of the prompt")->check(CLI::Range(1, 100000))->capture_default_str();
    app.add_option("--tokens", o.tokens, "tokens after it")->check(CLI::Range(0, 100000))->capture_default_str();
    app.add_option("--head-dim", o.head_dim, "channels of a head; 4 kv heads")
        ->check(CLI::Range(2, 512))
        ->capture_default_str();
    app.add_option("--refuse", o.refuse, "the rank whose cache has no room for one large step")->type_name("RANK");
    const Group world(MPI_COMM_WORLD);
    try {
        app.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
        return world.rank == 0 ? app.exit(error) : error.get_exit_code();
    }
    if (o.head_dim % 2 != 0) throw std::runtime_error("--head-dim: RoPE turns pairs of channels");
    if (o.refuse >= world.size) throw std::runtime_error("--refuse: there is no such rank");
    bool right = true;
    for (const std::string& scheme : o.schemes) right = run_scheme(scheme, o, world) && right;
    return right ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
    MPI_Init(&argc, &argv);
    int status = 2;
    try {
        status = run_all(argc, argv);
    } catch (const std::exception& error) {
        int rank = 0;
        MPI_Comm_rank(MPI_COMM_WORLD, &rank);
        std::fprintf(stderr, "xquant-mpi: rank %d: %s\n", rank, error.what());
        MPI_Abort(MPI_COMM_WORLD, 2);  // the others may be waiting for this rank
    }
    MPI_Finalize();
    return status;
}
