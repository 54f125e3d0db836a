// llama_decode MODEL OUT.json THREADS TOKENS REPETITIONS DEPTH...: what `xquant-llm bench` measures, of llama.cpp's
// f16, q8_0 and q4_0 caches with flash attention. Cache types take turns. Not part of the build: tools/bench-peers
// compiles it against the llama.cpp that it has fetched.
//
// llama-bench measures the same, but evaluates the whole prompt for every cache type, and only knows wall time. Here
// the cache is filled by many sequences of 128 tokens at consecutive positions, which are then made one: what lies in
// the cache is not what the model would have put there, and takes as long to read. With one thread, times are processor
// times.
#include <llama.h>

#include <time.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

namespace {

constexpr int chunk = 128;
constexpr int most_sequences = 64;

[[noreturn]] void fail(const std::string& what) {
    std::fprintf(stderr, "llama_decode: %s\n", what.c_str());
    std::exit(1);
}

double seconds(int threads) {
    timespec now{};
    clock_gettime(threads == 1 ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

class Cache {
public:
    Cache(llama_model* model, const char* name, ggml_type type, int threads)
        : name_(name),
          vocabulary_(llama_vocab_n_tokens(llama_model_get_vocab(model))),
          batch_(llama_batch_init(chunk, 0, 1)) {
        llama_context_params parameters = llama_context_default_params();
        parameters.n_ctx = 8192;
        parameters.n_batch = parameters.n_ubatch = 512;
        parameters.n_seq_max = most_sequences;
        parameters.kv_unified = true;
        parameters.n_threads = parameters.n_threads_batch = threads;
        parameters.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
        parameters.type_k = parameters.type_v = type;
        context_ = llama_init_from_model(model, parameters);
        if (context_ == nullptr) fail(std::string("no context with a cache of ") + name);
    }

    [[nodiscard]] const char* name() const { return name_; }
    [[nodiscard]] int size() const { return size_; }

    void fill(int depth) {
        for (int sequence = 1; size_ < depth; ++sequence) {
            if (sequence >= most_sequences) sequence = 1;
            const int n = depth - size_ < chunk ? depth - size_ : chunk;
            run(n, sequence);
            llama_memory_t memory = llama_get_memory(context_);
            llama_memory_seq_cp(memory, sequence, 0, -1, -1);
            llama_memory_seq_rm(memory, sequence, -1, -1);
        }
    }

    /// Seconds a token.
    double measure(int tokens, int threads) {
        const double start = seconds(threads);
        for (int i = 0; i < tokens; ++i) run(1, 0);
        return (seconds(threads) - start) / tokens;
    }

private:
    void run(int n, int sequence) {
        batch_.n_tokens = n;
        for (int i = 0; i < n; ++i) {
            batch_.token[i] = (size_ + 17 * i) % vocabulary_;
            batch_.pos[i] = size_ + i;
            batch_.n_seq_id[i] = 1;
            batch_.seq_id[i][0] = sequence;
            batch_.logits[i] = i + 1 == n;
        }
        if (llama_decode(context_, batch_) != 0) fail("llama_decode refused a batch");
        llama_synchronize(context_);
        size_ += n;
    }

    const char* name_;
    int vocabulary_, size_ = 0;
    llama_batch batch_;
    llama_context* context_ = nullptr;
};

}  // namespace

int main(int argc, char** argv) {
    if (argc < 7) fail("MODEL OUT.json THREADS TOKENS REPETITIONS DEPTH...");
    llama_log_set(
        [](ggml_log_level level, const char* text, void*) {
            if (level >= GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
        },
        nullptr);
    llama_backend_init();
    llama_model* model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (model == nullptr) fail(std::string("can't load ") + argv[1]);
    const int threads = std::atoi(argv[3]), tokens = std::atoi(argv[4]), repetitions = std::atoi(argv[5]);
    std::vector<std::unique_ptr<Cache>> caches;
    for (const auto& [name, type] :
         {std::pair{"f16", GGML_TYPE_F16}, {"q8_0", GGML_TYPE_Q8_0}, {"q4_0", GGML_TYPE_Q4_0}}) {
        caches.push_back(std::make_unique<Cache>(model, name, type, threads));
    }
    std::string depths, samples;
    for (int i = 6; i < argc; ++i) {
        const int depth = std::atoi(argv[i]);
        depths += (depths.empty() ? "" : ",") + std::to_string(depth);
        for (const auto& cache : caches) cache->fill(depth);
        for (int repetition = 0; repetition < repetitions; ++repetition) {
            for (const auto& cache : caches) {
                const int before = cache->size();
                char line[200];
                std::snprintf(line, sizeof line, "%s\n  {\"scheme\": \"%s\", \"depth\": %d, \"token_seconds\": %.9f}",
                              samples.empty() ? "" : ",", cache->name(), before, cache->measure(tokens, threads));
                samples += line;
            }
        }
    }
    std::FILE* out = std::fopen(argv[2], "w");
    if (out == nullptr) fail(std::string("can't write ") + argv[2]);
    std::fprintf(out, "{\"threads\": %d, \"tokens\": %d, \"clock\": \"%s\", \"depths\": [%s], \"samples\": [%s\n]}\n",
                 threads, tokens, threads == 1 ? "processor" : "wall", depths.c_str(), samples.c_str());
    return std::fclose(out) == 0 ? 0 : 1;
}
