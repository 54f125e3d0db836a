// xquant-llama-compare: logits of models with llama.cpp's caches and with xquant's.
//
//     xquant-run xquant-llama-compare f16 models/*.gguf
//
// Each model goes through six small plays (below), with random tokens: over llama.cpp's cache in f32, which is the
// truth here, over its f16 cache, and over xquant's scheme. A line a model: the normalized squared error of all logits
// for both, the rows whose most likely token is the truth's, and each play with the ratio of the errors. A play that
// llama.cpp itself does not get through is left out.
//
//     --bound B     fails where xquant's error is more than B times that of f16; 0: none
//     --shift 1     the play `erase` closes its gap. llama.cpp turns cached keys by the RoPE of the model's parameters,
//                   which in some models is not what their graphs do: there the two caches differ
//     --threads N, --seed N
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "llama.h"

namespace {

enum class Play { decode, erase, copy, couple, restore, whole };
constexpr std::initializer_list<Play> plays{Play::decode, Play::erase,   Play::copy,
                                            Play::couple, Play::restore, Play::whole};

const char* name_of(Play play) {
    switch (play) {
        case Play::decode:
            return "decode";
        case Play::erase:
            return "erase";
        case Play::copy:
            return "copy";
        case Play::couple:
            return "couple";
        case Play::restore:
            return "restore";
        default:
            return "whole";
    }
}

int threads = 1;
unsigned seed = 1;
bool may_shift = false;

std::string last_error;  // what was logged, for the line of a model that is refused
bool served = false;     // whether a context has xquant's cache

void remember(ggml_log_level level, const char* text, void*) {
    if (std::strstr(text, "xquant: the cache is") != nullptr) served = true;
    if (level >= GGML_LOG_LEVEL_WARN && std::strstr(text, "xquant") != nullptr) last_error = text;
}

struct Cache {
    ggml_type type;
    const char* scheme;  ///< null: llama.cpp's own
};

/// One context on its way through a play. `logits` gets a row for each token.
class Player {
public:
    Player(llama_model* model, Cache cache, Play play, std::uint32_t seed) : play_(play), random_(seed) {
        if (cache.scheme != nullptr)
            setenv("XQUANT_CACHE", cache.scheme, 1);
        else
            unsetenv("XQUANT_CACHE");
        vocabulary_ = llama_vocab_n_tokens(llama_model_get_vocab(model));
        llama_context_params params = llama_context_default_params();
        params.n_ctx = 512;
        params.n_batch = 256;
        params.n_ubatch = 64;
        params.n_seq_max = 2;
        params.n_threads = params.n_threads_batch = threads;
        params.type_k = params.type_v = cache.type;
        params.kv_unified = play == Play::couple;
        params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
        context_.reset(llama_init_from_model(model, params));
        batch_ = llama_batch_init(256, 0, 2);
    }
    ~Player() { llama_batch_free(batch_); }
    Player(const Player&) = delete;
    Player& operator=(const Player&) = delete;

    [[nodiscard]] bool ready() const { return context_ != nullptr; }
    [[nodiscard]] bool can_shift() const { return memory() != nullptr && llama_memory_can_shift(memory()); }
    /// False where llama.cpp, or the adapter, fails.
    bool run(bool shift);
    [[nodiscard]] const std::vector<float>& logits() const { return logits_; }
    [[nodiscard]] bool is_finite() const {
        return std::all_of(logits_.begin(), logits_.end(), [](float value) { return std::isfinite(value); });
    }
    [[nodiscard]] int vocabulary() const { return vocabulary_; }

private:
    struct Free {
        void operator()(llama_context* context) const { llama_free(context); }
    };
    [[nodiscard]] llama_memory_t memory() const { return llama_get_memory(context_.get()); }
    void add(int position, std::initializer_list<llama_seq_id> sequences) {
        const int i = batch_.n_tokens++;
        batch_.token[i] = static_cast<llama_token>(random_() % static_cast<unsigned>(vocabulary_));
        batch_.pos[i] = position;
        batch_.n_seq_id[i] = static_cast<int>(sequences.size());
        std::copy(sequences.begin(), sequences.end(), batch_.seq_id[i]);
        batch_.logits[i] = 1;
    }
    void decode() {
        good_ = good_ && llama_decode(context_.get(), batch_) == 0;
        for (int i = 0; good_ && i < batch_.n_tokens; ++i) {
            const float* const row = llama_get_logits_ith(context_.get(), i);
            logits_.insert(logits_.end(), row, row + vocabulary_);
        }
        batch_.n_tokens = 0;
    }
    /// Tokens one after another.
    void go_on(int from, int count, std::initializer_list<llama_seq_id> sequences) {
        for (int t = 0; t < count; ++t) {
            for (const llama_seq_id s : sequences) add(from + t, {s});
            decode();
        }
    }

    Play play_;
    std::mt19937 random_;
    std::unique_ptr<llama_context, Free> context_;
    llama_batch batch_{};
    int vocabulary_ = 0;
    std::vector<float> logits_;
    bool good_ = true;
};

bool Player::run(bool shift) {
    if (play_ == Play::couple) {  // tokens of two sequences at once
        for (int i = 0; i < 30; ++i) add(i, {0, 1});
        decode();
        go_on(30, 4, {0, 1});
        return good_;
    }
    for (int i = 0; i < 100; ++i) {  // prompts of two lengths, mixed
        add(i, {0});
        if (i < 61) add(i, {1});
    }
    decode();
    for (int t = 0; t < 4; ++t) {
        add(100 + t, {0});
        add(61 + t, {1});
        decode();
    }
    if (play_ == Play::erase) {  // a middle goes, and what follows moves up
        if (!llama_memory_seq_rm(memory(), 0, 20, 41)) return false;
        if (shift) llama_memory_seq_add(memory(), 0, 41, -1, -21);
        go_on(shift ? 83 : 104, 4, {0});
    }
    if (play_ == Play::copy) {
        llama_memory_seq_rm(memory(), 1, -1, -1);
        llama_memory_seq_cp(memory(), 0, 1, -1, -1);
        go_on(104, 4, {0, 1});
    }
    if (play_ == Play::whole) {  // tokens that see each other, as those of an image do
        llama_set_causal_attn(context_.get(), false);
        for (int t = 0; t < 30; ++t) add(104 + t, {0});
        decode();
        llama_set_causal_attn(context_.get(), true);
        go_on(134, 4, {0});
    }
    if (play_ == Play::restore) {
        std::vector<std::uint8_t> state(llama_state_seq_get_size(context_.get(), 0));
        if (llama_state_seq_get_data(context_.get(), state.data(), state.size(), 0) != state.size()) return false;
        llama_memory_clear(memory(), true);
        if (llama_state_seq_set_data(context_.get(), state.data(), state.size(), 1) == 0) return false;
        go_on(llama_memory_seq_pos_max(memory(), 1) + 1, 4, {1});
    }
    return good_;
}

/// Sums over all logits of all plays.
struct Difference {
    double error = 0, square = 0;
    std::size_t rows = 0, same = 0;

    void add(const std::vector<float>& truth, const std::vector<float>& other, std::size_t width) {
        if (truth.size() != other.size()) error = INFINITY;
        for (std::size_t i = 0; i < truth.size() && i < other.size(); ++i) {
            const double difference = double{truth[i]} - double{other[i]};
            error += std::isfinite(difference) ? difference * difference : INFINITY;
            square += double{truth[i]} * double{truth[i]};
        }
        for (std::size_t i = 0; i + width <= truth.size() && i + width <= other.size(); i += width) {
            const auto best = [&](const std::vector<float>& of) {
                const auto row = of.begin() + static_cast<std::ptrdiff_t>(i);
                return std::max_element(row, row + static_cast<std::ptrdiff_t>(width)) - row;
            };
            same += best(truth) == best(other) ? 1 : 0;
            ++rows;
        }
    }
    [[nodiscard]] double nmse() const { return error / square; }
};

enum class Verdict { good, wrong, refused, not_run, aborted };

/// `scheme` null: llama.cpp alone.
Verdict compare(const std::string& path, const char* scheme, double bound) {
    const std::string file = path.substr(path.rfind('/') + 1);
    unsetenv("XQUANT_CACHE");
    const auto line = [&](const char* verdict, const std::string& what) {
        std::printf("%-44s %-8s %s\n", file.c_str(), verdict, what.c_str());
        std::fflush(stdout);
    };
    const std::unique_ptr<llama_model, decltype(&llama_model_free)> model(
        llama_model_load_from_file(path.c_str(), llama_model_default_params()), llama_model_free);
    if (model == nullptr || llama_model_has_encoder(model.get())) {
        line("not run", model == nullptr ? "llama.cpp does not load it" : "it has an encoder");
        return Verdict::not_run;
    }
    Difference ours, f16;
    std::string played;
    for (const Play play : plays) {
        Player truth(model.get(), {GGML_TYPE_F32, nullptr}, play, seed),
            half(model.get(), {GGML_TYPE_F16, nullptr}, play, seed);
        if (scheme == nullptr) {
            if (truth.ready()) truth.run(truth.can_shift());
            if (half.ready()) half.run(half.can_shift());
            continue;
        }
        last_error.clear();
        Player other(model.get(), {GGML_TYPE_F16, scheme}, play, seed);
        if (truth.ready() && !other.ready()) {
            last_error.erase(std::remove(last_error.begin(), last_error.end(), '\n'), last_error.end());
            line("refused", last_error);
            return Verdict::refused;
        }
        if (other.ready() && !served) {
            line("no rows", "it keeps no keys and values");
            return Verdict::not_run;
        }
        const bool shift = may_shift && truth.ready() && truth.can_shift() && other.can_shift();
        if (!truth.ready() || !truth.run(shift) || !half.run(shift) || !truth.is_finite()) continue;
        last_error.clear();
        if (!other.run(shift)) {
            if (last_error.find("not causal") != std::string::npos) {
                played += ", whole refused";
                continue;
            }
            line("WRONG", std::string(name_of(play)) + " failed: " + last_error);
            return Verdict::wrong;
        }
        const auto width = static_cast<std::size_t>(truth.vocabulary());
        Difference here, here_f16;
        for (Difference* to : {&ours, &here}) to->add(truth.logits(), other.logits(), width);
        for (Difference* to : {&f16, &here_f16}) to->add(truth.logits(), half.logits(), width);
        char ratio[32];
        std::snprintf(ratio, sizeof ratio, " %.2g", here.nmse() / here_f16.nmse());
        played += std::string(played.empty() ? "" : ", ") + name_of(play) +
                  (play == Play::erase && shift ? "+shift" : "") + ratio;
    }
    if (scheme == nullptr) return Verdict::good;
    if (played.empty()) {
        line("not run", "llama.cpp does not decode with it");
        return Verdict::not_run;
    }
    char text[200];
    std::snprintf(text, sizeof text, "NMSE %.1e, llama.cpp's f16 %.1e: %.2f times; same token %zu of %zu (f16 %zu); ",
                  ours.nmse(), f16.nmse(), ours.nmse() / f16.nmse(), ours.same, ours.rows, f16.same);
    // Where f16 makes no difference, floats still round.
    const bool good = bound == 0 ? std::isfinite(ours.error) : ours.nmse() <= bound * f16.nmse() + 1e-13;
    line(good ? "good" : "WRONG", text + played);
    return good ? Verdict::good : Verdict::wrong;
}

/// compare in a process of its own: an assertion in llama.cpp ends the process.
Verdict compare_apart(const std::string& path, const char* scheme, double bound) {
    const pid_t child = fork();
    if (child == 0) {
        llama_backend_init();
        llama_log_set(remember, nullptr);
        std::exit(static_cast<int>(compare(path, scheme, bound)));
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status)) return Verdict::aborted;
    return static_cast<Verdict>(WEXITSTATUS(status));
}

}  // namespace

int main(int argc, char** argv) {
    double bound = 0;
    int first = 1;
    for (; first + 1 < argc && std::strncmp(argv[first], "--", 2) == 0; first += 2) {
        if (std::strcmp(argv[first], "--bound") == 0) bound = std::atof(argv[first + 1]);
        if (std::strcmp(argv[first], "--threads") == 0) threads = std::atoi(argv[first + 1]);
        if (std::strcmp(argv[first], "--seed") == 0) seed = static_cast<unsigned>(std::atoi(argv[first + 1]));
        if (std::strcmp(argv[first], "--shift") == 0) may_shift = std::atoi(argv[first + 1]) != 0;
    }
    if (argc - first < 2 || threads < 1) {
        std::fprintf(stderr,
                     "usage: xquant-run xquant-llama-compare [--bound B] [--threads N] [--seed N] [--shift 0|1] SCHEME "
                     "MODEL.gguf...\n");
        return 2;
    }
    setenv("GGML_NO_BACKTRACE", "1", 0);
    int count[4] = {0, 0, 0, 0};
    for (int i = first + 1; i < argc; ++i) {
        Verdict verdict = compare_apart(argv[i], argv[first], bound);
        if (verdict == Verdict::aborted) {
            const bool alone = compare_apart(argv[i], nullptr, bound) == Verdict::aborted;
            verdict = alone ? Verdict::not_run : Verdict::wrong;
            std::printf("%s: %s\n", argv[i], alone ? "not run, llama.cpp aborts" : "WRONG, it aborts");
        }
        ++count[static_cast<int>(verdict)];
        std::fflush(stdout);
    }
    std::printf("%s: %d good, %d wrong, %d refused, %d not run by llama.cpp\n", argv[first], count[0], count[1],
                count[2], count[3]);
    return count[1] + count[2] == 0 ? 0 : 1;
}
