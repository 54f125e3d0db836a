// xquant_bench: Google Benchmark's options, and the machine's limits in the context of every report. Exit status 1 if
// an answer was wrong.
#include <fmt/format.h>
#include <unistd.h>

#include <cstring>

#include <xquant/version.hpp>

#include "caches.hpp"

namespace {

bool failed = false;

/// Google Benchmark ends names with how they were measured; what a benchmark is called shall not depend on that. And it
/// forgets that there were errors.
template <class Reporter>
class PlainNames : public Reporter {
public:
    using Reporter::Reporter;
    void ReportRuns(const std::vector<benchmark::BenchmarkReporter::Run>& runs) override {
        std::vector<benchmark::BenchmarkReporter::Run> plain = runs;
        for (auto& run : plain) {
            run.run_name.iterations = run.run_name.time_type = run.run_name.min_time = "";
            failed |= run.error_occurred;
        }
        Reporter::ReportRuns(plain);
    }
};

bool has(int argc, char** argv, const char* option) {
    for (int i = 1; i < argc; ++i) {
        if (std::strncmp(argv[i], option, std::strlen(option)) == 0) return true;
    }
    return false;
}

}  // namespace

int main(int argc, char** argv) {
    const bool lists = has(argc, argv, "--benchmark_list_tests"), writes = has(argc, argv, "--benchmark_out=");
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
    if (!lists) {
        const bench::Roofline& peak = bench::roofline();
        benchmark::AddCustomContext(
            "xquant", fmt::format("{}.{}.{}", XQUANT_VERSION_MAJOR, XQUANT_VERSION_MINOR, XQUANT_VERSION_PATCH));
        benchmark::AddCustomContext("best backend", bench::backends().back().name);
        benchmark::AddCustomContext("weights", xquant::to_string(bench::options().weights));
        benchmark::AddCustomContext("stream GB/s", fmt::format("{:.2f}", peak.stream * 1e-9));
        benchmark::AddCustomContext("f32 GOP/s", fmt::format("{:.2f}", peak.f32 * 1e-9));
        benchmark::AddCustomContext("f32 form", peak.f32_form);
        benchmark::AddCustomContext("int8 GOP/s", fmt::format("{:.2f}", peak.int8 * 1e-9));
        benchmark::AddCustomContext("int8 form", peak.int8_form);
    }
    using Console = benchmark::ConsoleReporter;
    PlainNames<Console> display(isatty(STDOUT_FILENO) != 0 ? Console::OO_ColorTabular : Console::OO_Tabular);
    PlainNames<benchmark::JSONReporter> file;
    benchmark::RunSpecifiedBenchmarks(&display, writes ? &file : nullptr);
    benchmark::Shutdown();
    return failed ? 1 : 0;
}
