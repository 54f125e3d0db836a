/// whisper-caches: what quantized caches of Whisper's decoder cost, an MHA model with self and cross attention.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <string>

#include "evaluate.hpp"

namespace {

std::string not_negative(const std::string& text) { return text.starts_with('-') ? "must not be negative" : ""; }

void number(CLI::App& app, const char* name, std::size_t& value, const char* help) {
    app.add_option(name, value, help)->capture_default_str()->type_name("N")->check(not_negative, "");
}

}  // namespace

int main(int argc, char** argv) {
    CLI::App app{
        "Compares quantized caches of Whisper's decoder with exact ones in f32, on its own transcripts: those of self "
        "attention, and those of cross attention."};
    whisper::EvaluateOptions o;
    app.footer("\n" + whisper::schemes_help());
    app.add_option("--data", o.data, "file that tools/whisper made")
        ->envname("XQUANT_WHISPER")
        ->required()
        ->type_name("FILE");
    app.add_option("--schemes", o.self_schemes, "of self attention, separated by commas; see below")
        ->delimiter(',')
        ->capture_default_str()
        ->type_name("A,B,C");
    app.add_option("--cross-schemes", o.cross_schemes, "of cross attention")
        ->delimiter(',')
        ->capture_default_str()
        ->type_name("A,B,C");
    bool no_self = false, no_cross = false;
    app.add_flag("--no-self", no_self, "leave self attention out");
    app.add_flag("--no-cross", no_cross, "leave cross attention out");
    number(app, "--sinks", o.sinks, "first tokens of self attention that stay in f16");
    number(app, "--cross-sinks", o.cross_sinks, "first frames of cross attention that stay in f16");
    number(app, "--calibrate", o.calibrate,
           "learn statistics from every Nth window, which is not scored; 0: from none");
    number(app, "--windows", o.windows, "windows to score; 0: all");
    number(app, "--threads", o.threads, "threads; 0: as many as the machine has");
    CLI11_PARSE(app, argc, argv);
    try {
        if (no_self) o.self_schemes.clear();
        if (no_cross) o.cross_schemes.clear();
        whisper::evaluate(o);
    } catch (const std::exception& error) {
        std::fflush(stdout);
        fmt::print(stderr, "whisper-caches: {}\n", error.what());
        return 1;
    }
    return 0;
}
