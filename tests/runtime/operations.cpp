// What a program sees of the runtime: errors with their types and texts, executors and memory of its own, several
// threads, the lists of schemes and levels. Knows no kernel, so that any compiler makes it for any processor.
//
//     runtime_operations [--level NAME] [--svd on|off] [--files on|off] [--emulated on]
//     runtime_operations --missing NAME
//
// --level, --svd, --files: that this level runs, that schemes of an SVD are there or not, and files. --emulated: fewer
// schemes, for emulated processors, which are slow. --missing: prints what this processor lacks of a level, and does
// nothing else.
#include <atomic>
#include <cstring>
#include <exception>
#include <limits>
#include <memory_resource>
#include <new>
#include <stdexcept>
#include <thread>

#include <xquant/runtime.hpp>

#include "check.hpp"
#include "script.hpp"
#include "support/statistics.hpp"

namespace runtime = xquant::runtime;
using xquant::MatrixView;
using xquant::Options;

namespace {

/// Starts its threads anew for every call, and counts tasks.
struct Threads {
    std::size_t count = 3;
    mutable std::atomic<std::size_t> tasks{0};

    template <class F>
    void parallel_for(std::size_t n, F&& f) const {
        std::atomic<std::size_t> next{0};
        const auto work = [&] {
            for (std::size_t i = next++; i < n; i = next++) {
                ++tasks;
                f(i);
            }
        };
        std::vector<std::thread> others;
        for (std::size_t i = 1; i < count && i < n; ++i) others.emplace_back(work);
        work();
        for (std::thread& one : others) one.join();
    }
};

/// An error that the library does not know.
struct Own : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct Refusing {
    template <class F>
    void parallel_for(std::size_t, F&&) const {
        throw Own("no threads today");
    }
};

/// Memory of the program's own, which may run out.
class Counted final : public std::pmr::memory_resource {
public:
    std::size_t in_use = 0, calls = 0;
    bool spent = false;

private:
    void* do_allocate(std::size_t bytes, std::size_t alignment) override {
        if (spent) throw std::bad_alloc();
        in_use += bytes;
        ++calls;
        return std::pmr::new_delete_resource()->allocate(bytes, alignment);
    }
    void do_deallocate(void* pointer, std::size_t bytes, std::size_t alignment) override {
        in_use -= bytes;
        std::pmr::new_delete_resource()->deallocate(pointer, bytes, alignment);
    }
    [[nodiscard]] bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }
};

bool equal(const script::Record& a, const script::Record& b) {
    return a.answers.size() == b.answers.size() && a.numbers == b.numbers && a.stored == b.stored &&
           std::memcmp(a.answers.data(), b.answers.data(), a.answers.size() * sizeof(float)) == 0;
}

template <class Executor>
script::Record run(const std::string& scheme, const Executor& threads) {
    const test::Setup setup = script::model();
    const auto cache = runtime::make_cache(scheme, setup.model, script::options());
    return script::run(*cache, setup.model, threads);
}

/// The first calls of all come from several threads at once.
void check_threads() {
    std::vector<script::Record> records(4);
    std::vector<std::thread> threads;
    for (script::Record& record : records) threads.emplace_back([&record] { record = run("kv4", xquant::Serial{}); });
    for (std::thread& one : threads) one.join();
    for (const script::Record& record : records) {
        check::that(!record.answers.empty() && equal(record, records.front()), "four threads: equal answers and bytes");
    }

    // One cache, a sequence for each thread.
    const test::Setup setup = script::model();
    const auto cache = runtime::make_cache("kivi4", setup.model, script::options());
    std::atomic<int> wrong{0};
    threads.clear();
    for (int i = 0; i < 4; ++i) {
        threads.emplace_back([&] {
            const xquant::Sequence sequence = cache->create();
            const std::vector<float> x(200 * setup.model.layers[0].shape.width, 0.25F);
            const auto step = cache->begin({{sequence, 200}});
            for (std::size_t layer = 0; layer < setup.model.layers.size(); ++layer) {
                step->append(layer, MatrixView(x.data(), 200, setup.model.layers[0].shape.width));
            }
            step->commit();
            if (cache->size(sequence) != 200 || cache->next_position(sequence) != 200) ++wrong;
            cache->drop(sequence);
        });
    }
    for (std::thread& one : threads) one.join();
    check::that(wrong == 0, "four sequences of one cache on four threads");
}

void check_executors(const std::vector<const char*>& schemes) {
    for (const char* scheme : schemes) {
        const Threads threads;
        const script::Record serial = run(scheme, xquant::Serial{}), parallel = run(scheme, threads);
        check::that(equal(serial, parallel), std::string(scheme) + ": bit for bit equal with three threads");
        check::that(threads.tasks > 0, std::string(scheme) + ": the program's executor runs the tasks");
        const xquant::ExecutorRef reference(threads);
        check::that(equal(serial, run(scheme, reference)),
                    std::string(scheme) + ": xquant::ExecutorRef is an executor");
    }
    check::throws<Own>([] { static_cast<void>(run("kv4", Refusing{})); }, "no threads today");
}

void check_memory() {
    const test::Setup setup = script::model();
    Counted memory;
    {
        Options options = script::options();
        options.memory = &memory;
        const auto cache = runtime::make_cache("kv4", setup.model, options);
        const xquant::Sequence sequence = cache->create();
        check::that(memory.calls > 0 && memory.in_use == cache->bytes().total(), "memory is taken of Options::memory");
        memory.spent = true;
        bool refused = false;
        try {
            static_cast<void>(cache->begin({{sequence, 1000}}));
        } catch (const std::bad_alloc&) {
            refused = true;
        }
        check::that(refused, "std::bad_alloc of the program's memory comes back as it is");
        check::that(memory.in_use == cache->bytes().total(), "nothing has changed then");
    }
    check::that(memory.in_use == 0, "all memory is given back");
}

/// Sequences that were saved answer, in a cache that loads them, as they do in their own.
void check_files(bool there) {
    using Bytes = std::vector<std::byte>;
    const test::Setup setup = script::model();
    const std::size_t width = setup.model.layers[0].shape.width,
                      head_width = setup.model.layers[0].shape.heads * setup.model.layers[0].shape.head_dim;
    test::Random random(5);
    const auto rows = random.rows(300 * width), query = random.rows(head_width);
    const auto from = runtime::make_cache("kv4", setup.model, script::options()),
               to = runtime::make_cache("kv4", setup.model, script::options());
    const xquant::Sequence sequence = from->create(), list[] = {sequence};
    Bytes file;
    const auto sink = [&file](std::span<const std::byte> bytes) {
        file.insert(file.end(), bytes.begin(), bytes.end());
    };
    if (!there) {
        check::throws<xquant::state_error>([&] { from->save(list, sink); }, "compiled without xxHash");
        return;
    }
    const auto step = from->begin({{sequence, 300}});
    for (std::size_t i = 0; i < setup.model.layers.size(); ++i) step->append(i, MatrixView(rows.data(), 300, width));
    step->commit();
    from->save(list, sink, "a note");
    check::that(file.size() == from->saved_bytes(list, "a note") && file.size() > 1000, "as many bytes as was said");
    const auto source_of = [](const Bytes& bytes, std::size_t& at) {
        return [&bytes, &at](std::span<std::byte> part) {
            std::copy_n(bytes.begin() + static_cast<std::ptrdiff_t>(at), part.size(), part.begin());
            at += part.size();
        };
    };
    std::size_t at = 0;
    auto source = source_of(file, at);
    const xquant::Loaded loaded = to->load(source);
    check::that(loaded.sequences.size() == 1 && loaded.note == "a note", "a sequence and its note are loaded");
    std::vector<float> expected(head_width), found(head_width);
    from->attend(1, {{sequence, 1}}, MatrixView(query.data(), 1, head_width), expected.data());
    to->attend(1, {{loaded.sequences[0], 1}}, MatrixView(query.data(), 1, head_width), found.data());
    check::that(expected[0] != 0 && found == expected, "a loaded sequence answers as the saved one does");

    Bytes damaged = file;
    damaged[damaged.size() - 100] ^= std::byte{4};
    at = 0;
    auto bad = source_of(damaged, at);
    check::throws<xquant::damage_error>([&] { static_cast<void>(to->load(bad)); }, "is damaged");
    check::throws<xquant::file_error>([&] { static_cast<void>(to->load("/no/such/file")); }, "/no/such/file");
    const auto other = runtime::make_cache("kv8", setup.model, script::options());
    at = 0;
    auto again = source_of(file, at);
    check::throws<xquant::mismatch_error>([&] { static_cast<void>(other->load(again)); }, "of another quantizer");
}

void check_errors() {
    using namespace xquant;
    const test::Setup setup = script::model();
    const std::size_t width = setup.model.layers[0].shape.width;
    const std::vector<float> x(10 * width, 0.5F);
    check::throws<shape_error>([&] { static_cast<void>(runtime::make_cache("kv5", setup.model)); },
                               "unknown scheme 'kv5', did you mean kv8, kv4");
    check::throws<shape_error>([] { static_cast<void>(runtime::find_scheme("kivi4:group=16")); },
                               "with N one of 128, 64, 32");
    check::throws<shape_error>([&] { static_cast<void>(runtime::predict("x5", setup.model, {}, 10)); },
                               "unknown scheme 'x5'");
    Model wrong = setup.model;
    wrong.layers[1].shape.kv_heads = 3;
    check::throws<shape_error>([&] { static_cast<void>(runtime::make_cache("kv4", wrong)); },
                               "layer 1: heads is 2; expected a multiple of kv_heads = 3");
    wrong = setup.model;
    wrong.layers[0].softmax_scale = std::numeric_limits<double>::infinity();
    check::throws<value_error>([&] { static_cast<void>(runtime::make_cache("kv4", wrong)); }, "softmax_scale is inf");

    const auto cache = runtime::make_cache("kv4", setup.model, script::options());
    const Sequence s = cache->create(), gone = cache->create();
    cache->drop(gone);
    check::throws<sequence_error>([&] { static_cast<void>(cache->size(gone)); }, "sequence");
    check::throws<sequence_error>([&] { cache->drop(gone); }, "sequence");
    check::throws<sequence_error>([&] { static_cast<void>(cache->begin({{s, 1}, {s, 1}})); }, "sequence");
    check::throws<shape_error>([&] { cache->truncate(s, 3); }, "3");
    check::throws<shape_error>([&] { cache->erase(s, 5, 9); }, "9");
    check::throws<shape_error>([&] { cache->shift(s, 5, 9, 1); }, "tokens 5 .. 9");
    check::throws<shape_error>([&] { cache->set_next_position(s, std::int64_t{1} << 50U); }, "2^48");
    check::throws<shape_error>([&] { static_cast<void>(cache->position_of(s, 3)); }, "token 3");
    std::vector<float> asked(width);
    check::throws<shape_error>(
        [&] {
            cache->attend(0, {{s, 1}}, MatrixView(x.data(), 1, width), asked.data());
        },
        "which has 0 tokens");
    const std::vector<std::int32_t> parents{-1, 1};
    check::throws<shape_error>([&] { static_cast<void>(cache->begin({{s, 2, parents}})); }, "parent of token 1");
    const std::vector<std::uint32_t> twice{3, 3}, apart{7, 3};
    check::throws<shape_error>([&] { static_cast<void>(cache->begin({{s, 2, {}, twice}})); }, "names row 3 twice");
    check::throws<shape_error>(
        [&] {
            cache->begin({{s, 2, {}, apart}})->append(0, MatrixView(x.data(), 7, width));
        },
        "[8, 128], or more rows");
    check::throws<state_error>([&] { cache->requantize(std::vector<Sequence>{s}); }, "quantizer");
    check::throws<state_error>(
        [&] { cache->requantize(std::vector<Sequence>{s}, [](const PageChoice&) { return true; }); }, "quantizer");
    {
        const auto step = cache->begin({{s, 10}});
        check::throws<sequence_error>([&] { cache->seal(s); }, "sequence");
        check::throws<sequence_error>([&] { cache->compact(s); }, "sequence");
        check::throws<shape_error>([&] { step->append(0, MatrixView(x.data(), 9, width)); }, "[9, 128]");
        check::throws<state_error>([&] { step->append(1, MatrixView(x.data(), 10, width)); }, "layer 1");
        std::vector<float> infinite = x;
        infinite[700] = std::numeric_limits<float>::infinity();
        check::throws<value_error>([&] { step->append(0, MatrixView(infinite.data(), 10, width)); }, "row");
        try {
            step->append(0, MatrixView(infinite.data(), 10, width));
        } catch (const value_error& problem) {
            check::that(problem.layer == 0 && problem.row == 700 / width, "an error's numbers cross as they are");
        }
        step->append(0, MatrixView(x.data(), 10, width));
        check::throws<state_error>([&] { step->commit(); }, "layer");
    }
    check::that(cache->size(s) == 0, "an abandoned step leaves nothing");

    Options options = script::options();
    options.budget = 4096;
    const auto small = runtime::make_cache("kv4", setup.model, options);
    const Sequence t = small->create();
    const std::size_t used = small->bytes().stored();
    try {
        static_cast<void>(small->begin({{t, 5000}}));
        check::that(false, "a budget of 4096 bytes is kept to");
    } catch (const budget_error& error) {
        check::that(error.budget == 4096 && error.used + error.needed > 4096, "budget_error has its numbers");
        check::that(std::string(error.what()).find("the budget of 4096 bytes is spent") != std::string::npos,
                    "budget_error says which budget");
    }
    check::that(small->bytes().stored() == used, "what does not fit changes nothing");
    bool as_base = false;
    try {
        static_cast<void>(runtime::find_scheme("nothing like it"));
    } catch (const xquant::error&) {
        as_base = true;
    }
    check::that(as_base, "errors are caught as xquant::error");
}

void check_interface() {
    runtime::detail::Interface other;
    other.layer += 8;
    const std::string size = std::to_string(sizeof(xquant::Layer));
    const std::string words = "the program was compiled with a Layer of " + std::to_string(other.layer) +
                              " bytes, this library with one of " + size;
    check::throws<runtime::level_error>([&] { static_cast<void>(runtime::schemes(other)); }, words);
    check::throws<runtime::level_error>([&] { static_cast<void>(runtime::levels(other)); }, words);
    check::throws<runtime::level_error>([&] { static_cast<void>(runtime::make_cache("kv4", {}, {}, other)); }, words);
    other = {};
    other.revision = 77;
    check::throws<runtime::level_error>([&] { static_cast<void>(runtime::level(other)); },
                                        "the program has revision 77 of the runtime's interface");
}

void check_lists(const std::string& svd) {
    bool has_kv4 = false, has_svd = false, has_statistics = false;
    test::Setup setup = script::model();
    const xquant::Calibration known = test::random_calibration(setup.model);
    known.attach(setup.model);
    for (const xquant::SchemeInfo& scheme : runtime::schemes()) {
        has_kv4 = has_kv4 || scheme.name == "kv4";
        has_svd = has_svd || scheme.name == "svd_head4";
        check::that(runtime::find_scheme(scheme.name).summary == scheme.summary, scheme.name + ": found by its name");
        check::that(!scheme.summary.empty() && !scheme.forms.empty(), scheme.name + " says what it is");
        if (scheme.needs == xquant::Needs::calibration) continue;
        has_statistics = has_statistics || scheme.needs == xquant::Needs::statistics;
        check::that(runtime::predict(scheme.name, setup.model, {}, 500).stored() > 0,
                    scheme.name + ": predicted bytes");
    }
    check::that(has_kv4, "kv4 is among the schemes");
    if (!svd.empty()) check::that(has_svd == (svd == "on"), "svd_head4 is among the schemes: " + svd);
    check::that(has_statistics == has_svd, "schemes of statistics are there where those of an SVD are");
    if (has_svd) {
        for (xquant::Layer& layer : setup.model.layers) layer.statistics = nullptr;
        check::throws<xquant::value_error>(
            [&] { static_cast<void>(runtime::make_cache("head4:uniform", setup.model)); }, "Layer::statistics is null");
        const script::Record record = run("svd_head4", xquant::Serial{});
        check::that(!record.answers.empty(), "svd_head4 runs");
    }
}

void check_level(const std::string& expected) {
    const runtime::LevelInfo level = runtime::level();
    std::printf("level %s, backend %s\n", level.name.c_str(), level.backend.c_str());
    check::that(level.missing.empty(), "the processor lacks nothing of the level that runs");
    if (!expected.empty()) check::that(level.name == expected, "level " + level.name + " runs; expected " + expected);
    bool listed = false;
    for (const runtime::LevelInfo& one : runtime::levels()) listed = listed || one.name == level.name;
    check::that(listed, "the level that runs is listed");
}

int print_missing(const std::string& name) {
    for (const runtime::LevelInfo& one : runtime::levels()) {
        if (one.name != name) continue;
        std::printf("%s", one.missing.c_str());
        return 0;
    }
    std::fprintf(stderr, "no level %s\n", name.c_str());
    return 2;
}

}  // namespace

int main(int count, char** arguments) {
    std::string level, svd;
    bool emulated = false, files = true;
    for (int i = 1; i + 1 < count; i += 2) {
        const std::string name = arguments[i], value = arguments[i + 1];
        if (name == "--missing") return print_missing(value);
        if (name == "--level") level = value;
        if (name == "--svd") svd = value;
        if (name == "--files") files = value == "on";
        if (name == "--emulated") emulated = value == "on";
    }
    try {
        if (!emulated) check_threads();
        check_level(level);
        check_lists(svd);
        check_executors(emulated ? std::vector<const char*>{"kv4"} : std::vector{"f16", "kv4", "x4_rot", "cl_x3"});
        check_memory();
        check_files(files);
        check_errors();
        check_interface();
    } catch (const std::exception& error) {
        check::that(false, std::string("an error that nobody expected: ") + error.what());
    }
    return check::result("operations");
}
