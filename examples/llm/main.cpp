/// xquant-llm: a small engine that shows what quantized attention caches cost, in bytes and in quality.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <string>

#include "bench.hpp"
#include "bytes.hpp"
#include "generate.hpp"
#include "gguf.hpp"
#include "inspect.hpp"
#include "perplexity.hpp"
#include "plan.hpp"
#include "retrieve.hpp"
#include "schemes.hpp"
#include "statistics.hpp"
#include "tokenizer.hpp"

namespace {

void add_model(CLI::App& command, std::string& model) {
    command.add_option("--model", model, "GGUF file: llama, qwen2, qwen3, gemma3 or gpt2")
        ->envname("XQUANT_MODEL")
        ->required()
        ->type_name("FILE");
}

CLI::Option* add_calibration(CLI::App& command, std::string& file) {
    return command
        .add_option("--calibration", file, "what `calibrate` saved of this model, for head*, joint* and their kind")
        ->type_name("FILE");
}

CLI::Option* add_rebuilt(CLI::App& command, std::string& bytes) {
    return command
        .add_option("--rebuilt", bytes,
                    "bytes of keys in 8 bits that a cache of X or latents keeps, instead of making them anew for every "
                    "token; k, M, G: 2^10, 2^20, 2^30 (default: none)")
        ->type_name("BYTES");
}

/// CLI11 2.1 would read -1 as a very large unsigned number.
std::string not_negative(const std::string& text) { return text.starts_with('-') ? "must not be negative" : ""; }

template <class T>
CLI::Option* number(CLI::App& command, const char* name, T& value, const char* help) {
    return command.add_option(name, value, help)->capture_default_str()->type_name("N")->check(not_negative, "");
}

void tokenize(const std::string& model, const std::string& text) {
    const std::string content = llm::read_text(text);
    std::string out;
    for (const llm::Token token : llm::Tokenizer(llm::Gguf::open(model)).encode(content))
        out += fmt::format("{}\n", token);
    std::fputs(out.c_str(), stdout);
}

}  // namespace

int main(int argc, char** argv) {
    CLI::App app{"Runs a language model with quantized attention caches, and measures what they cost."};
    app.require_subcommand(1);
    app.footer("xquant-llm COMMAND --help says more.");

    llm::PerplexityOptions p;
    std::size_t calibrate_offset = 0;
    CLI::App* perplexity = app.add_subcommand("perplexity", "Compare schemes with the exact f32 cache on a text");
    add_model(*perplexity, p.model);
    perplexity->footer("\n" + llm::schemes_help());
    perplexity->add_option("--text", p.text, "UTF-8 text")->required()->type_name("FILE");
    number(*perplexity, "--offset", p.offset, "first token of the text to use");
    number(*perplexity, "--context", p.context, "tokens in a chunk; each chunk is a context of its own");
    number(*perplexity, "--chunks", p.chunks, "chunks, one after the other");
    perplexity->add_option("--schemes", p.schemes, "schemes, separated by commas; see below")
        ->delimiter(',')
        ->capture_default_str()
        ->type_name("A,B:tail=N,...");
    number(*perplexity, "--sinks", p.sinks, "first tokens of a chunk that stay exact");
    number(*perplexity, "--tail", p.tail, "newest tokens that stay exact");
    number(*perplexity, "--step", p.step, "tokens fed at once; 0: the whole context, or 32 if there is a tail");
    bool bos = false;
    CLI::Option* bos_flag = perplexity->add_flag(
        "--bos,!--no-bos", bos,
        "begin every context with BOS, in place of its first token (default: as the model's file asks)");
    perplexity->add_flag("--score-second-half", p.second_half,
                         "score only the second half of each context, as llama-perplexity does");
    CLI::Option* calibrate =
        perplexity
            ->add_option("--calibrate-offset", calibrate_offset,
                         "first of the 2 x context tokens that x*_rot_mean and kvquant schemes learn from "
                         "(default: 100000, in a shorter text 0)")
            ->type_name("N")
            ->check(not_negative, "");
    number(*perplexity, "--threads", p.threads, "threads; 0: as many as the machine has");
    perplexity
        ->add_option(
            "--backend", p.backend,
            "where the schemes' caches lie and attend: processor; cuda, a GPU; emulated_cuda, the kernels for GPUs "
            "in plain C++, hundreds of times slower")
        ->capture_default_str()
        ->type_name("NAME");
    add_calibration(*perplexity, p.calibration);
    perplexity->add_option("--json", p.json, "also write the figures to this file")->type_name("FILE");

    llm::CalibrateOptions c;
    CLI::App* calibrate_text = app.add_subcommand("calibrate", "Learn from a text what errors of a model's cache cost");
    add_model(*calibrate_text, c.model);
    calibrate_text
        ->add_option("--text", c.texts, "UTF-8 texts, separated by commas; places of several texts are better")
        ->delimiter(',')
        ->required()
        ->type_name("FILE,...");
    calibrate_text->add_option("--out", c.out, "file to write")->required()->type_name("FILE");
    number(*calibrate_text, "--context", c.context, "tokens of a context");
    number(*calibrate_text, "--contexts", c.contexts, "contexts, spread evenly over each text");
    number(*calibrate_text, "--from", c.from, "first token of each text that may be used");
    number(*calibrate_text, "--to", c.to, "token behind the last one that may be used; 0: all");
    number(*calibrate_text, "--sinks", c.sinks, "first tokens of a context that caches will keep exact");
    number(
        *calibrate_text, "--measured", c.measured,
        "contexts of 512 tokens on which K and V of each layer are measured by themselves; 0: they are not, and only "
        "uniform schemes can be made");
    calibrate_text->add_flag("--x", c.x, "also what the schemes of X need: D^2 floats a layer");
    number(*calibrate_text, "--threads", c.threads, "threads; 0: as many as the machine has");

    llm::AllocateOptions a;
    CLI::App* allocate = app.add_subcommand("allocate", "Divide bits among the layers of a model's cache");
    add_model(*allocate, a.model);
    add_calibration(*allocate, a.calibration)->required();
    allocate->add_option("--form", a.form, "heads: bases of each head; joint: of all heads together")
        ->capture_default_str()
        ->type_name("NAME");
    number(*allocate, "--bits", a.bits, "bits of a code on average, 2 to 6")->type_name("X");
    number(*allocate, "--bytes-per-token", a.bytes_per_token, "or at most so many bytes a token, over all layers");
    allocate->add_option("--out", a.out, "recipe to write; recipe=FILE is a scheme")->required()->type_name("FILE");

    llm::PlanOptions l;
    CLI::App* plan = app.add_subcommand(
        "plan",
        "Say which caches of a model fit into memory, how fast they are and what they cost, before one is made");
    add_model(*plan, l.model);
    add_calibration(*plan, l.calibration);
    number(*plan, "--context", l.context, "tokens of each sequence");
    number(*plan, "--sequences", l.sequences, "sequences that take a token at once");
    plan->add_option("--memory", l.memory, "bytes for caches and prepared weights; k, M, G: 2^10, 2^20, 2^30")
        ->type_name("BYTES[k|M|G]");
    plan->add_option("--schemes", l.schemes, "names, separated by commas, with :group=N and :uniform")
        ->delimiter(',')
        ->capture_default_str()
        ->type_name("A,B,C");
    number(*plan, "--sinks", l.sinks, "first tokens kept in f16");
    number(*plan, "--tail", l.tail, "newest tokens kept in f16");
    number(*plan, "--threads", l.threads, "threads; 0: as many as the machine has");
    plan->add_option("--machine", l.machine,
                     "what this machine can do: measured, in a second, and written where the file is not there")
        ->type_name("FILE");
    plan->add_option("--json", l.json, "also write the table to this file; tools/plot_plan.py draws it")
        ->type_name("FILE");
    plan->footer(
        "Divergence needs a --calibration with sensitivities, and of kv*, q*_0* and x* one that was made with --x. A "
        "minute or two for schemes of X in a basis of their own (xc*).");

    llm::GenerateOptions g;
    CLI::App* generate = app.add_subcommand("generate", "Continue a prompt");
    add_model(*generate, g.model);
    generate->footer("\n" + llm::schemes_help());
    generate
        ->add_option("--prompt", g.prompt,
                     "text to continue (<|im_start|> and the like count as special tokens), or with --chat a question")
        ->required()
        ->type_name("TEXT");
    generate->add_option("--scheme", g.scheme, "cache to use; see below")->capture_default_str()->type_name("SCHEME");
    number(*generate, "--tokens", g.tokens, "most tokens to generate");
    number(*generate, "--temperature", g.temperature, "0: always the most likely token")->type_name("X");
    number(*generate, "--seed", g.seed, "of the random draws, if the temperature isn't 0");
    generate->add_flag("--chat", g.chat, "use the model's chat template");
    generate->add_option("--system", g.system, "system prompt of --chat")->capture_default_str()->type_name("TEXT");
    add_calibration(*generate, g.calibration);
    number(*generate, "--sinks", g.sinks, "first tokens kept in f16");
    number(*generate, "--tail", g.tail, "newest tokens kept in f16");
    add_rebuilt(*generate, g.rebuilt);
    number(*generate, "--threads", g.threads, "threads; 0: as many as the machine has");
    generate
        ->add_option("--save-cache", g.save_cache,
                     "at the end, save the cache of the prompt and of what was generated to this file")
        ->type_name("FILE");
    generate
        ->add_option(
            "--load-cache", g.load_cache,
            "begin with a saved cache of the same model and scheme: tokens that it has in common with the prompt are "
            "not read again. What follows may differ from a run without it where rows that had left the tail when it "
            "was saved stand in the tail of this prompt: they stay as they were coded (f16 codes lose nothing); and "
            "by rounding, since other tokens are read at once")
        ->type_name("FILE");

    std::string saved, saved_json;
    CLI::App* inspect = app.add_subcommand("inspect", "Say what a saved cache holds, and whether it is intact");
    inspect->add_option("FILE", saved, "saved cache")->required()->type_name("");
    inspect->add_option("--json", saved_json, "also write it to this file")->type_name("FILE");
    inspect->footer("The exit status is 1 if a page is damaged.");

    llm::BenchOptions b;
    CLI::App* bench = app.add_subcommand("bench", "Time a token at several depths of the cache");
    add_model(*bench, b.model);
    bench->add_option("--schemes", b.schemes, "names, separated by commas")
        ->delimiter(',')
        ->capture_default_str()
        ->type_name("A,B,C");
    bench->add_option("--depths", b.depths, "tokens cached before, rising, separated by commas")
        ->delimiter(',')
        ->capture_default_str()
        ->type_name("N,N,N")
        ->check(not_negative, "");
    number(*bench, "--tokens", b.tokens, "tokens of a sample, one after the other");
    number(*bench, "--repetitions", b.repetitions, "samples of a scheme and depth");
    add_calibration(*bench, b.calibration);
    number(*bench, "--sinks", b.sinks, "first tokens kept in f16");
    number(*bench, "--tail", b.tail, "newest tokens kept in f16");
    add_rebuilt(*bench, b.rebuilt);
    number(*bench, "--threads", b.threads, "threads; 0: as many as the machine has");
    bench->add_option("--json", b.json, "also write the samples to this file")->type_name("FILE");

    llm::RetrieveOptions r;
    CLI::App* retrieve = app.add_subcommand("retrieve", "Count how often a pass key in a long text is found");
    add_model(*retrieve, r.model);
    retrieve->add_option("--text", r.text, "UTF-8 text that keys are hidden in")->required()->type_name("FILE");
    retrieve->add_option("--schemes", r.schemes, "names, separated by commas")
        ->delimiter(',')
        ->capture_default_str()
        ->type_name("A,B,C");
    number(*retrieve, "--trials", r.trials, "texts, each with a key of its own");
    number(*retrieve, "--shortest", r.shortest, "tokens of the shortest trial");
    number(*retrieve, "--longest", r.longest, "tokens of the longest one; the others lie evenly between them");
    number(*retrieve, "--digits", r.digits, "of a key");
    number(*retrieve, "--sinks", r.sinks, "first tokens that stay exact; all others are read from codes");
    number(*retrieve, "--seed", r.seed, "of keys, their places and the stretches of text");
    number(*retrieve, "--threads", r.threads, "threads; 0: as many as the machine has");
    add_calibration(*retrieve, r.calibration);
    retrieve->add_option("--json", r.json, "also write the figures to this file")->type_name("FILE");
    retrieve->footer("Keys that the model does not find with its exact cache do not count.");

    llm::BytesOptions s;
    CLI::App* bytes = app.add_subcommand("bytes", "Say what caches of a model will take; reads no model");
    bytes->add_option("--shape", s.shape, fmt::format("{}", fmt::join(llm::shape_names(), ", ")))
        ->capture_default_str()
        ->type_name("NAME");
    bytes->add_option("--schemes", s.schemes, "names, separated by commas; without it, all")
        ->delimiter(',')
        ->type_name("A,B,C");
    number(*bytes, "--tokens", s.tokens, "tokens of one sequence");
    bytes->add_option("--json", s.json, "also write the figures to this file, in bytes")->type_name("FILE");
    bytes->footer(
        "Sequence: what is stored of it, 4 sinks and the newest 128 tokens in f16. Weights: the matrices that a cache "
        "prepares, for all sequences, where it is given X; and in f16 where it is given K and V.");

    std::string model, text;
    CLI::App* tokens = app.add_subcommand("tokenize", "Print the token ids of a text, one a line");
    add_model(*tokens, model);
    tokens->add_option("--text", text, "UTF-8 text")->required()->type_name("FILE");

    CLI11_PARSE(app, argc, argv);
    try {
        if (*bos_flag) p.bos = bos;
        if (*calibrate) p.calibrate_offset = calibrate_offset;
        if (*perplexity) llm::perplexity(p);
        if (*calibrate_text) llm::calibrate_texts(c);
        if (*allocate) llm::allocate(a);
        if (*plan) llm::plan(l);
        if (*generate) llm::generate(g);
        if (*bench) llm::bench(b);
        if (*retrieve) llm::retrieve(r);
        if (*bytes) llm::bytes(s);
        if (*tokens) tokenize(model, text);
        if (*inspect && !llm::inspect(saved, saved_json)) return 1;
    } catch (const std::exception& error) {
        std::fflush(stdout);
        fmt::print(stderr, "xquant-llm: {}\n", error.what());
        return 1;
    }
    return 0;
}
