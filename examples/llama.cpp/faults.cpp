// xquant-llama-faults MODEL: what goes wrong while llama.cpp runs over a cache of xquant's, and what it answers then.
//
//     XQUANT_CACHE=kv4 xquant-run xquant-llama-faults model.gguf
//
// Each fault has to be answered by an error of llama.cpp's own (llama_decode does not return 0, a state is not loaded),
// and the context has to live on: afterwards its logits are, bit for bit, those of a context that never saw the fault.
// A line for each fault, "fault: ..."; the exit status is 0 where all are well.
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <limits>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "llama.h"

// The process's allocations. While `countdown` is not negative, it counts those that the adapter makes, and the one at
// 0 fails. Only one operation of the graph runs meanwhile: llama.cpp itself allocates nothing there.
namespace {
std::atomic<long> countdown{-1};
std::atomic<bool> armed{false}, failed{false};
}  // namespace

void* operator new(std::size_t size) {
    if (armed && countdown.fetch_sub(1) == 0) {
        failed = true;
        throw std::bad_alloc();
    }
    if (void* const memory = std::malloc(size != 0 ? size : 1)) return memory;
    throw std::bad_alloc();
}
void* operator new(std::size_t size, std::align_val_t alignment) {
    if (armed && countdown.fetch_sub(1) == 0) {
        failed = true;
        throw std::bad_alloc();
    }
    const auto align = static_cast<std::size_t>(alignment);
    if (void* const memory = std::aligned_alloc(align, (size + align - 1) / align * align)) return memory;
    throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

namespace {

constexpr int prompt_tokens = 200, context_tokens = 1024;

struct Free {
    void operator()(llama_model* model) const { llama_model_free(model); }
    void operator()(llama_context* context) const { llama_free(context); }
};
using Model = std::unique_ptr<llama_model, Free>;
using Context = std::unique_ptr<llama_context, Free>;
using Logits = std::vector<float>;

bool served = false;

void require(bool holds, const std::string& what) {
    if (!holds) throw std::runtime_error(what);
}

/// Arms the allocations of one layer's attention.
bool watch(ggml_tensor* node, bool before, void*) {
    if (std::strcmp(node->name, "kqv_out-0") != 0) return false;
    armed = before;
    return true;
}

Context make_context(llama_model* model) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = context_tokens;
    params.n_batch = params.n_ubatch = context_tokens;
    params.n_threads = params.n_threads_batch = 1;
    params.n_seq_max = 2;
    params.kv_unified = true;
    params.cb_eval = watch;
    Context context(llama_init_from_model(model, params));
    require(context != nullptr, "no context");
    return context;
}

llama_token token_of(llama_model* model, int i) {
    return static_cast<llama_token>((i * 7919 + 13) % llama_vocab_n_tokens(llama_model_get_vocab(model)));
}

/// Decodes tokens first .. first + count of the play at their positions; the answer of llama_decode.
int decode(llama_context* context, int first, int count) {
    auto* const model = const_cast<llama_model*>(llama_get_model(context));
    llama_batch batch = llama_batch_init(count, 0, 1);
    for (int i = 0; i < count; ++i) {
        batch.token[i] = token_of(model, first + i);
        batch.pos[i] = first + i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = i + 1 == count;
    }
    batch.n_tokens = count;
    const int answer = llama_decode(context, batch);
    llama_batch_free(batch);
    armed = false;
    return answer;
}

Logits last_logits(llama_context* context) {
    const int n = llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(context)));
    const float* const logits = llama_get_logits_ith(context, -1);
    require(logits != nullptr, "no logits");
    return {logits, logits + n};
}

/// Some more tokens behind the prompt, one after the other: all logits.
Logits go_on(llama_context* context, int from = prompt_tokens, int count = 4) {
    Logits out;
    for (int i = 0; i < count; ++i) {
        const int answer = decode(context, from + i, 1);
        require(answer == 0, "the context answers " + std::to_string(answer) + " afterwards");
        const Logits more = last_logits(context);
        out.insert(out.end(), more.begin(), more.end());
    }
    for (const float value : out) require(std::isfinite(value), "logits are not finite afterwards");
    return out;
}

void prompt(llama_context* context) { require(decode(context, 0, prompt_tokens) == 0, "the prompt is not decoded"); }

/// Embeddings in place of tokens, one of them NaN.
void bad_rows(llama_model* model, const Logits& expected) {
    const Context context = make_context(model);
    prompt(context.get());
    const int width = llama_model_n_embd(model), count = 3;
    llama_batch batch = llama_batch_init(count, width, 1);
    std::fill_n(batch.embd, count * width, 0.01F);
    batch.embd[width + 5] = std::numeric_limits<float>::quiet_NaN();
    for (int i = 0; i < count; ++i) {
        batch.pos[i] = prompt_tokens + i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = true;
    }
    batch.n_tokens = count;
    const int answer = llama_decode(context.get(), batch);
    llama_batch_free(batch);
    armed = false;
    require(answer != 0, "rows that are not finite were decoded");
    require(go_on(context.get()) == expected, "other logits afterwards");
    std::printf("fault: rows that are not finite: llama_decode answers %d, logits are equal afterwards\n", answer);
}

/// One allocation after another fails while attention of layer 0 runs.
void no_memory(llama_model* model, const Logits& expected) {
    const Context context = make_context(model);
    prompt(context.get());
    long refused = 0;
    for (long at = 0;; ++at) {
        countdown = at;
        failed = false;
        const int answer = decode(context.get(), prompt_tokens, 1);
        countdown = -1;
        if (!failed) {
            require(answer == 0, "without a failure, llama_decode answers " + std::to_string(answer));
            break;
        }
        require(answer != 0, "allocation " + std::to_string(at) + " failed, and llama_decode answers 0");
        ++refused;
    }
    require(refused > 0, "attention allocates nothing, so nothing was tried");
    // The token that was decoded at last is the first of those that go_on decodes.
    Logits found = last_logits(context.get());
    const Logits more = go_on(context.get(), prompt_tokens + 1, 3);
    found.insert(found.end(), more.begin(), more.end());
    require(found == expected, "other logits afterwards");
    std::printf("fault: no memory in the middle of a step: %ld failures refused, logits are equal afterwards\n",
                refused);
}

/// More tokens than XQUANT_BUDGET allows; some are removed, and it goes on.
void no_budget(llama_model* model) {
    const auto play = [&](bool limited) {
        if (limited) setenv("XQUANT_BUDGET", "4M", 1);
        const Context context = make_context(model);
        unsetenv("XQUANT_BUDGET");
        int at = 0, answer = 0;
        constexpr int step = 16;
        while (at + step <= 600 && (answer = decode(context.get(), at, step)) == 0) at += step;
        return std::pair<int, int>(at, answer);
    };
    const auto [most, answer] = play(true);
    require(answer == 1, "with a budget of 4 MiB, llama_decode answers " + std::to_string(answer) + " after " +
                             std::to_string(most) + " tokens; expected 1");
    require(most > 32, "only " + std::to_string(most) + " tokens fit into 4 MiB");
    const auto cut_and_go_on = [&](llama_context* context) {
        require(llama_memory_seq_rm(llama_get_memory(context), 0, most / 2, -1), "tokens cannot be removed");
        return go_on(context, most / 2);
    };
    setenv("XQUANT_BUDGET", "4M", 1);
    const Context limited = make_context(model);
    unsetenv("XQUANT_BUDGET");
    const Context free = make_context(model);
    for (int at = 0; at < most; at += 16) {
        require(decode(limited.get(), at, 16) == 0, "the tokens that fitted do not fit again");
        require(decode(free.get(), at, 16) == 0, "tokens are not decoded without a budget");
    }
    require(decode(limited.get(), most, 16) == 1, "the step beyond the budget is not refused again");
    require(cut_and_go_on(limited.get()) == cut_and_go_on(free.get()), "other logits afterwards");
    std::printf("fault: budget of 4 MiB: refused after %d tokens, logits are equal after half of them are removed\n",
                most);
}

/// A save that is killed half way, and a state with one bit changed.
void broken_states(llama_model* model, const Logits& expected) {
    const Context context = make_context(model);
    prompt(context.get());
    const std::size_t size = llama_state_seq_get_size(context.get(), 0);
    std::vector<std::uint8_t> state(size);
    require(llama_state_seq_get_data(context.get(), state.data(), size, 0) == size, "the state is not saved");

    std::string path = (std::filesystem::temp_directory_path() / "xquant-llama-faults-XXXXXX").string();
    const int file = mkstemp(path.data());
    require(file >= 0, "no temporary file");
    close(file);
    const pid_t child = fork();
    if (child == 0) {
        const rlimit half{size / 2, size / 2};  // the kernel ends who writes beyond it
        setrlimit(RLIMIT_FSIZE, &half);
        const rlimit none{0, 0};
        setrlimit(RLIMIT_CORE, &none);
        llama_state_seq_save_file(context.get(), path.c_str(), 0, nullptr, 0);
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    std::size_t tokens = 0;
    const bool killed = WIFSIGNALED(status);
    std::size_t loaded = 0;
    llama_token token = 0;  // with no room for tokens, llama.cpp would only count them
    if (killed) loaded = llama_state_seq_load_file(context.get(), path.c_str(), 1, &token, 1, &tokens);
    unlink(path.c_str());
    require(killed, "the save was not killed");
    require(loaded == 0, "half a state was loaded");

    long refused = 0, tried = 0;
    for (std::size_t at = 40; at < size; at += size / 97 + 1) {
        std::vector<std::uint8_t> damaged = state;
        damaged[at] ^= 0x10U;
        ++tried;
        refused += llama_state_seq_set_data(context.get(), damaged.data(), size, 1) == 0 ? 1 : 0;
    }
    require(llama_state_seq_set_data(context.get(), state.data(), size, 1) != 0, "the whole state is not loaded");
    llama_memory_t memory = llama_get_memory(context.get());
    llama_memory_seq_rm(memory, 0, -1, -1);
    llama_memory_seq_cp(memory, 1, 0, -1, -1);
    llama_memory_seq_rm(memory, 1, -1, -1);
    require(go_on(context.get()) == expected, "other logits afterwards");
    std::printf(
        "fault: a save that is killed: not loaded; %ld of %ld states with a changed bit refused; logits are "
        "equal afterwards\n",
        refused, tried);
    require(refused == tried, "states with a changed bit were loaded");
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 2) {
        std::fputs("usage: XQUANT_CACHE=NAME xquant-run xquant-llama-faults MODEL\n", stderr);
        return 2;
    }
    llama_backend_init();
    llama_log_set(
        [](ggml_log_level level, const char* text, void*) {
            if (std::strstr(text, "xquant: the cache is") != nullptr) served = true;
            if (level >= GGML_LOG_LEVEL_ERROR && std::getenv("VERBOSE") != nullptr) std::fputs(text, stderr);
        },
        nullptr);
    try {
        const Model model(llama_model_load_from_file(arguments[1], llama_model_default_params()));
        require(model != nullptr, std::string("no model ") + arguments[1]);
        Logits expected;
        {
            const Context context = make_context(model.get());
            prompt(context.get());
            expected = go_on(context.get());
        }
        require(served, "the context is not over xquant's cache; is XQUANT_CACHE set, and was it run by xquant-run?");
        bad_rows(model.get(), expected);
        no_memory(model.get(), expected);
        no_budget(model.get());
        broken_states(model.get(), expected);
        return 0;
    } catch (const std::exception& error) {
        std::printf("fault: WRONG: %s\n", error.what());
        return 1;
    }
}
