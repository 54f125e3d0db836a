// xquant_bench_scaling --json FILE [--quick] [--shapes A,B] [--seconds N]: how the time of a decode step of a cache
// grows with tokens, sequences, layers and threads.
//
// A step is begin, append (append_kv where the scheme takes K and V) and attend of all layers, commit. The schemes of a
// shape take turns, step by step. Before each layer the processor's caches are emptied, as in a model whose weights
// pass in between. Writes what was measured as JSON, with the machine's limits of the same run; tools/scaling_table.py
// makes a table of it. Exit status 1 if an answer was wrong.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <exception>
#include <fstream>
#include <memory>
#include <memory_resource>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include <fmt/format.h>

#include <xquant/serving/huge_pages.hpp>
#include <xquant/version.hpp>

#include "../roofline.hpp"
#include "steps.hpp"

namespace bench {
namespace {

struct Settings {
    std::string json;
    std::vector<std::string> shapes{"smollm2_135m", "llama3_8b"};
    double seconds = 1;
    bool quick = false;
};

/// What is measured of a shape: one number grows, the others stay.
struct Plan {
    std::vector<std::size_t> tokens, sequences, layers;
    std::size_t usual = 0;  ///< tokens where sequences or layers grow
    std::size_t least = 3;  ///< whole steps of a cell
};

Plan plan_of(const Settings& settings) {
    if (settings.quick) return {{512, 2048, 8192}, {1, 8}, {1, 2}, 512, 1};
    return {{512, 2048, 8192, 32768}, {1, 8, 64}, {1, 2, 4}, 2048, 3};
}

/// Says what is under way: on a terminal in one line, elsewhere a line for each.
void progress(const std::string& what) {
    static const auto start = std::chrono::steady_clock::now();
    const bool terminal = isatty(STDERR_FILENO) != 0;
    const double passed = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    fmt::print(stderr, "{}  {:4.0f} s  {}{}", terminal ? "\r\033[K" : "", passed, what, terminal ? "" : "\n");
    std::fflush(stderr);
}

class Run {
public:
    explicit Run(const Settings& settings) : settings_(settings), plan_(plan_of(settings)) {}

    void run() {
        progress("the machine's limits");
        static_cast<void>(roofline());
        look_at_load();
        handout_ = measure_handout();
        stream_two_ = measure_stream_of_two();
        for (const std::string& name : settings_.shapes) {
            for (const Shape& shape : shapes) {
                if (name == shape.name) measure(shape);
            }
        }
        progress(fmt::format("{} cells\n", results_.size()));
    }

    void write() const {
        std::ofstream out(settings_.json);
        out << text() << std::flush;
        if (!out) throw std::runtime_error("can't write " + settings_.json);
    }

private:
    /// Seconds that two threads take to share out tasks of nothing.
    double measure_handout() {
        double best = 1;
        for (int round = 0; round < 20; ++round) {
            constexpr int times = 100;
            const auto start = std::chrono::steady_clock::now();
            for (int i = 0; i < times; ++i) two_.parallel_for(2, [](std::size_t) {});
            const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start;
            best = std::min(best, passed.count() / times);
        }
        return best;
    }

    /// Bytes a second that two threads read together: what a thread gets of the memory when it is not alone.
    double measure_stream_of_two() {
        const std::size_t bytes = std::max<std::size_t>(4 * last_level_cache(), std::size_t{128} << 20U);
        xquant::HugePages memory;
        const std::pmr::vector<std::uint64_t> values(bytes / sizeof(std::uint64_t), 1, &memory);
        double best = 0;
        for (int round = 0; round < 12; ++round) {
            const auto start = std::chrono::steady_clock::now();
            two_.parallel_for(2, [&](std::size_t half) {
                const auto from = values.begin() + static_cast<std::ptrdiff_t>(half * (values.size() / 2));
                const auto until = from + static_cast<std::ptrdiff_t>(values.size() / 2);
                benchmark::DoNotOptimize(std::accumulate(from, until, std::uint64_t{0}));
            });
            const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start;
            best = std::max(best, static_cast<double>(bytes) / passed.count());
        }
        return best;
    }

    void measure(const Shape& shape) {
        for (const std::size_t layers : plan_.layers) {
            std::vector<std::unique_ptr<Subject>> subjects;
            for (const Kind& kind : kinds()) {
                progress(fmt::format("{}: preparing {}, {} layers", shape.name, kind.name, layers));
                subjects.push_back(std::make_unique<Subject>(shape, kind, layers));
            }
            if (layers > 1) {
                measure(subjects, plan_.usual, 1, false);
                continue;
            }
            for (const std::size_t tokens : plan_.tokens) {
                measure(subjects, tokens, 1, tokens == plan_.tokens.back());
                if (tokens != plan_.usual) continue;
                for (const std::size_t count : plan_.sequences) {
                    if (count > 1) measure(subjects, tokens, count, count == plan_.sequences.back());
                }
            }
        }
    }

    void measure(std::vector<std::unique_ptr<Subject>>& subjects, std::size_t tokens, std::size_t count, bool threads) {
        const std::string what =
            fmt::format("{}: {} tokens, {} sequence{}, {} layer{}", subjects.front()->shape().name, tokens, count,
                        count > 1 ? "s" : "", subjects.front()->layers(), subjects.front()->layers() > 1 ? "s" : "");
        std::vector<std::unique_ptr<Cell>> cells;
        for (const auto& subject : subjects) {
            progress(what + ", filling " + subject->kind().name);
            subject->grow(tokens);
            cells.push_back(std::make_unique<Cell>(*subject, tokens, count, threads ? &two_ : nullptr,
                                                   settings_.seconds, plan_.least));
        }
        progress(what);
        for (bool more = true; more;) {
            more = false;
            for (const auto& cell : cells) {
                if (cell->done()) continue;
                cell->advance();
                more = true;
            }
        }
        for (const auto& cell : cells) results_.push_back(cell->result());
        look_at_load();
    }

    /// What else the machine does: the most that was seen.
    void look_at_load() {
        double now = 0;
        if (getloadavg(&now, 1) == 1) load_ = std::max(load_, now);
    }

    static std::string today() {
        const std::time_t now = std::time(nullptr);
        char text[11] = "";
        std::strftime(text, sizeof text, "%Y-%m-%d", std::localtime(&now));
        return text;
    }

    [[nodiscard]] std::string text() const {
        const Roofline& peak = roofline();
        std::string out = fmt::format(
            "{{\"machine\": {{\"xquant\": \"{}.{}.{}\", \"backend\": \"{}\", \"stream\": {:.4g}, \"f32\": {:.4g}, "
            "\"int8\": {:.4g}, \"f32 form\": \"{}\", \"int8 form\": \"{}\", \"handout\": {:.4g}, \"stream of two\": "
            "{:.4g}, \"load\": {:.2f}, "
            "\"date\": \"{}\"}},\n "
            "\"cells\": [",
            XQUANT_VERSION_MAJOR, XQUANT_VERSION_MINOR, XQUANT_VERSION_PATCH, Best::name, peak.stream, peak.f32,
            peak.int8, peak.f32_form, peak.int8_form, handout_, stream_two_, load_, today());
        for (std::size_t i = 0; i < results_.size(); ++i) out += (i > 0 ? ",\n  " : "\n  ") + text(results_[i]);
        return out + "\n]}\n";
    }

    static std::string text(const Measured& of) {
        std::string out = fmt::format(
            "{{\"scheme\": \"{}\", \"shape\": \"{}\", \"tokens\": {}, \"sequences\": {}, \"layers\": {}, \"steps\": "
            "{}, "
            "\"appends\": {}, \"begin\": {:.4g}, \"append\": {:.4g}, \"attend\": {:.4g}, \"commit\": {:.4g}, "
            "\"handling\": {:.4g}, \"wall\": {:.4g}, \"wall_two\": {:.4g}, \"bytes\": {:.6g}, \"f32\": {:.6g}, "
            "\"int8\": {:.6g}, \"error\": {:.3g}, \"calls\": [",
            of.scheme, of.shape, of.tokens, of.sequences, of.layers, of.steps, of.appends, of.begin, of.append,
            of.attend, of.commit, of.handling, of.wall, of.wall_two, of.load.bytes, of.load.f32, of.load.int8,
            of.error);
        for (std::size_t i = 0; i < of.calls.size(); ++i) {
            std::string tasks;
            for (const double seconds : of.calls[i].seconds) {
                tasks += fmt::format("{}{:.3g}", tasks.empty() ? "" : ", ", seconds);
            }
            out +=
                fmt::format("{}{{\"attends\": {}, \"seconds\": [{}]}}", i > 0 ? ", " : "", of.calls[i].attends, tasks);
        }
        return out + "]}";
    }

    Settings settings_;
    Plan plan_;
    llm::ThreadPool two_{2};
    double handout_ = 0, stream_two_ = 0, load_ = 0;
    std::vector<Measured> results_;
};

constexpr const char* usage =
    "xquant_bench_scaling --json FILE [--quick] [--shapes A,B] [--seconds N]\n"
    "How the time of a decode step of a cache grows with tokens, sequences, layers and threads.\n"
    "  --json FILE    where to write what was measured\n"
    "  --quick        fewer cells, and a step of each\n"
    "  --shapes A,B   default smollm2_135m,llama3_8b\n"
    "  --seconds N    of whole steps for each cell, default 1\n";

Settings read(int argc, char** argv) {
    Settings out;
    const auto refuse = [](const std::string& why) { throw std::runtime_error(why + "; see --help"); };
    for (int i = 1; i < argc; ++i) {
        const std::string name = argv[i];
        const auto value = [&]() -> std::string {
            if (i + 1 == argc) refuse(name + " needs a value");
            return argv[++i];
        };
        if (name == "--quick") {
            out.quick = true;
        } else if (name == "--json") {
            out.json = value();
        } else if (name == "--seconds") {
            char* end = nullptr;
            const std::string text = value();
            out.seconds = std::strtod(text.c_str(), &end);
            if (text.empty() || *end != '\0' || !(out.seconds > 0 && out.seconds <= 3600)) {
                refuse("--seconds is '" + text + "'; expected a number from 0 to 3600");
            }
        } else if (name == "--shapes") {
            out.shapes.clear();
            const std::string list = value();
            for (std::size_t at = 0; at <= list.size();) {
                const std::size_t end = std::min(list.find(',', at), list.size());
                out.shapes.push_back(list.substr(at, end - at));
                at = end + 1;
            }
        } else {
            refuse("unknown argument " + name);
        }
    }
    for (const std::string& name : out.shapes) {
        std::string known;
        bool there = false;
        for (const Shape& shape : shapes) {
            known += std::string(known.empty() ? "" : ", ") + shape.name;
            there |= name == shape.name;
        }
        if (!there) refuse("there is no shape '" + name + "'; expected " + known);
    }
    if (out.json.empty()) refuse("--json is missing");
    return out;
}

}  // namespace
}  // namespace bench

int main(int argc, char** argv) {
    if (argc == 2 && (std::string(argv[1]) == "--help" || std::string(argv[1]) == "-h")) {
        fmt::print("{}", bench::usage);
        return 0;
    }
    bench::Settings settings;
    try {
        settings = bench::read(argc, argv);
    } catch (const std::exception& error) {
        fmt::print(stderr, "xquant_bench_scaling: {}\n", error.what());
        return 2;
    }
    try {
        bench::Run run(settings);
        run.run();
        run.write();
    } catch (const std::exception& error) {
        fmt::print(stderr, "\nxquant_bench_scaling: {}\n", error.what());
        return 1;
    }
    return 0;
}
