/// Hundreds of thousands of random operations on a cache, beside a model of it in float64 that is as plain as it can
/// be: lists of tokens. Whatever was done to a sequence, it answers as attention over its tokens does.
///
/// A failure prints the shortest list of operations that still fails, found by leaving out what is not needed.
/// XQUANT_OPERATIONS says how many are done for all schemes together (200000), XQUANT_SEED where to begin (1).
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <xquant/persistence.hpp>

#include "support/catch.hpp"
#include "support/feed.hpp"
#include "support/memory.hpp"
#include "support/model.hpp"
#include "support/oracle.hpp"

using namespace xquant;
using test::Scheme;

namespace {

/// A scheme, and how closely it follows attention in float64.
struct Case {
    std::string scheme;
    Options options;
    std::size_t window;  ///< of the last layer
    double bound;        ///< against float64
    double same;         ///< against a fresh cache that was fed the same tokens
};

// Rows that are coded one by one are the same in a fresh cache, whatever happened to others. Groups of 128 tokens are
// not, nor are keys that were moved after RoPE.
const std::vector<Case> cases{
    {"f32 x, rotated", {.sinks = 3, .recent = 9, .rows = DType::f32}, 0, 2e-4, 2e-4},
    {"f32 k and v after RoPE, Hadamard", {.sinks = 3, .recent = 20, .rows = DType::f32}, 50, 2e-4, 2e-4},
    {"f32 cross-layer x, rotated", {.sinks = 2, .recent = 5, .rows = DType::f32}, 0, 2e-4, 2e-4},
    {"x rotated 3", {.sinks = 0, .recent = 0}, 40, 4, 1e-4},
    {"head svd 4", {.sinks = 4, .recent = 16}, 0, 2, 2},
    {"q4_0, Hadamard", {.sinks = 4, .recent = 0}, 0, 3, 3},
    {"cross-layer x rotated 8, f16 sums", {.sinks = 0, .recent = 0}, 0, 0.2, 1e-4},
    {"x rotated 4, requantizable to 2", {.sinks = 4, .recent = 8, .strict = true}, 0, 6, 6},
};

constexpr std::size_t layers = 4, most_sequences = 6, most_tokens = 400;

/// K before RoPE, and V, of a token in each layer; and the rows that a cache is fed.
struct Row {
    std::vector<std::vector<double>> k, v;  ///< [layers]
    std::vector<std::vector<float>> x, q;   ///< [layers]
};

struct Token {
    std::shared_ptr<const Row> row;
    std::int64_t position = 0;
    bool may_be_freed = false;  ///< by layers with a window
};

struct Expected {
    Sequence handle;
    std::vector<Token> tokens;
    std::int64_t next = 0;
};

/// Numbers that say what to do. They mean something in any state, so that lists stay good when entries are left out.
struct Operation {
    unsigned kind = 0;
    std::uint32_t a = 0, b = 0, c = 0;
};

const char* const kinds[] = {"step",          "step",     "step",          "create",     "drop",    "fork",
                             "fork a prefix", "truncate", "erase",         "erase",      "shift",   "gather",
                             "seal",          "compact",  "save and load", "requantize", "compare", "refusals"};
constexpr unsigned kind_count = sizeof kinds / sizeof *kinds;

std::string text_of(const Operation& o) {
    return std::string(kinds[o.kind]) + " " + std::to_string(o.a) + " " + std::to_string(o.b) + " " +
           std::to_string(o.c);
}

class Failure : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

void require(bool holds, const std::string& what) {
    if (!holds) throw Failure(what);
}

class Machine {
public:
    explicit Machine(const Case& which)
        : case_(which),
          setup_({.width = 8, .heads = 2, .kv_heads = 1, .head_dim = 4}, RopePairing::interleaved, layers) {
        setup_.model.layers.back().window = which.window;
        Options options = which.options;
        options.memory = &memory_;
        cache_ = test::scheme(which.scheme).make(setup_.model, options);
        empty_ = stored_pages();
    }

    void run(const Operation& o) {
        do_one(o);
        require(cache_->bytes().total() == memory_.bytes(), "bytes() is not what was asked of the memory resource");
        for (const Expected& s : sequences_) {
            require(cache_->size(s.handle) == s.tokens.size(), "a sequence has another size");
            require(cache_->next_position(s.handle) == s.next, "a sequence goes on at another position");
        }
    }

    void finish() {
        for (const Expected& s : sequences_) cache_->drop(s.handle);
        sequences_.clear();
        require(stored_pages() == empty_, "pages are left when all sequences are gone");
        cache_.reset();
        require(memory_.bytes() == 0 && !memory_.misused(), "memory is left when the cache is gone");
    }

private:
    [[nodiscard]] std::size_t stored_pages() const {
        const Bytes bytes = cache_->bytes();
        return bytes.codes + bytes.scales + bytes.tail + bytes.sinks + bytes.accumulator + bytes.mapped;
    }

    std::shared_ptr<const Row> make_row() {
        auto row = std::make_shared<Row>();
        const std::size_t number = counter_++;
        for (std::size_t i = 0; i < layers; ++i) {
            const Layer& layer = setup_.model.layers[i];
            const test::Rows rows = test::rows_of(layer, i, 7, number, 1);
            Layer plain = layer;
            plain.rope = {};
            row->k.push_back(test::oracle_rows(plain, rows.x, true));
            row->v.push_back(test::oracle_rows(plain, rows.x, false));
            row->x.push_back(rows.x);
            row->q.push_back(rows.q);
        }
        return row;
    }

    /// Attention of one token over those before it and itself: [H * Dh].
    [[nodiscard]] std::vector<double> attention(std::size_t index, const std::vector<Token>& tokens,
                                                std::size_t at) const {
        const Layer& layer = setup_.model.layers[index];
        const std::size_t dh = layer.shape.head_dim;
        const Token& query = tokens[at];
        std::vector<double> out(layer.shape.heads * dh, 0.0);
        for (std::size_t head = 0; head < layer.shape.heads; ++head) {
            std::vector<double> scores;
            double highest = -1e300;
            for (std::size_t t = 0; t <= at; ++t) {
                const std::int64_t back = query.position - tokens[t].position;
                if (layer.window > 0 && back >= static_cast<std::int64_t>(layer.window)) {
                    scores.push_back(-1e300);
                    continue;
                }
                // Queries come after RoPE, so keys are turned by their positions.
                std::vector<double> key = tokens[t].row->k[index];
                test::oracle_rope(layer.rope, tokens[t].position, key.data());
                double sum = 0;
                for (std::size_t c = 0; c < dh; ++c) {
                    sum += static_cast<double>(query.row->q[index][head * dh + c]) * key[c];
                }
                scores.push_back(sum / std::sqrt(static_cast<double>(dh)));
                highest = std::max(highest, scores.back());
            }
            double total = 0;
            for (double& score : scores) total += score = std::exp(score - highest);
            for (std::size_t t = 0; t <= at; ++t) {
                for (std::size_t c = 0; c < dh; ++c) {
                    out[head * dh + c] += scores[t] / total * tokens[t].row->v[index][c];
                }
            }
        }
        return out;
    }

    using Rows = std::vector<std::shared_ptr<const Row>>;

    /// One step of a cache; outputs of each layer.
    template <class Feed>
    static test::Outputs step_of(test::Cache& cache, const Model& model, const std::vector<StepPart>& parts,
                                 const Rows& rows, Feed&& commits) {
        auto step = cache.begin(parts);
        test::Outputs out;
        for (std::size_t i = 0; i < layers; ++i) {
            std::vector<float> x, q;
            for (const auto& row : rows) {
                x.insert(x.end(), row->x[i].begin(), row->x[i].end());
                q.insert(q.end(), row->q[i].begin(), row->q[i].end());
            }
            const LayerShape& shape = model.layers[i].shape;
            const std::size_t width = shape.heads * shape.head_dim;
            step.append(i, MatrixView(x.data(), rows.size(), shape.width));
            out.emplace_back(rows.size() * width);
            step.attend(i, MatrixView(q.data(), rows.size(), width), out.back().data());
        }
        if (commits()) step.commit();
        return out;
    }

    void step(const Operation& o) {
        std::vector<std::size_t> chosen;
        for (std::size_t i = 0; i < sequences_.size() && chosen.size() < 1 + o.b % 3; ++i) {
            chosen.push_back((o.a + i) % sequences_.size());
        }
        std::vector<StepPart> parts;
        std::vector<std::vector<Token>> after;
        Rows rows;
        for (const std::size_t i : chosen) {
            const Expected& s = sequences_[i];
            std::size_t n = 1 + (o.c >> (4 * parts.size())) % 9;
            if (o.c % 31 == 0) n = 130;
            if (s.tokens.size() + n > most_tokens) continue;
            parts.push_back({s.handle, n});
            std::vector<Token> tokens = s.tokens;
            for (std::size_t k = 0; k < n; ++k) {
                rows.push_back(make_row());
                tokens.push_back({rows.back(), s.next + static_cast<std::int64_t>(k), false});
            }
            after.push_back(std::move(tokens));
        }
        if (parts.empty()) return;
        const bool commits = o.b % 8 != 7;
        const test::Outputs out = step_of(*cache_, setup_.model, parts, rows, [&] { return commits; });
        std::size_t row = 0;
        for (std::size_t p = 0; p < parts.size(); ++p) {
            const std::size_t before = after[p].size() - parts[p].tokens;
            for (std::size_t k = 0; k < parts[p].tokens; ++k, ++row) {
                // All of a short step, some of a long one.
                if (parts[p].tokens > 16 && k % 16 != 0) continue;
                for (std::size_t i = 0; i < layers; ++i) {
                    const std::vector<double> exact = attention(i, after[p], before + k);
                    for (std::size_t c = 0; c < exact.size(); ++c) {
                        const double found = static_cast<double>(out[i][row * exact.size() + c]);
                        require(std::abs(found - exact[c]) < case_.bound,
                                "attention of layer " + std::to_string(i) + " is " + std::to_string(found) +
                                    " and should be " + std::to_string(exact[c]));
                    }
                }
            }
            if (!commits) continue;
            for (Expected& s : sequences_) {
                if (s.handle != parts[p].sequence) continue;
                for (Token& token : after[p]) {
                    token.may_be_freed |=
                        case_.window > 0 && token.position <= s.next - static_cast<std::int64_t>(case_.window);
                }
                s.tokens = after[p];
                s.next += static_cast<std::int64_t>(parts[p].tokens);
            }
        }
    }

    /// Steps and seal free what the next token cannot see.
    void note_window(Expected& s) const {
        for (Token& token : s.tokens) {
            token.may_be_freed |=
                case_.window > 0 && token.position <= s.next - static_cast<std::int64_t>(case_.window);
        }
    }

    /// Runs f, then g if it was not refused. Refusals are good where a window may have freed rows.
    template <class F, class G>
    void unless_freed(const Expected& s, F&& f, G&& g) {
        try {
            f();
        } catch (const shape_error& refused) {
            const bool freed =
                std::any_of(s.tokens.begin(), s.tokens.end(), [](const Token& token) { return token.may_be_freed; });
            require(freed && std::string(refused.what()).find("sliding window") != std::string::npos,
                    std::string("refused: ") + refused.what());
            return;
        }
        g();
    }

    static void cut(Expected& s, std::size_t begin, std::size_t end, std::int64_t delta) {
        for (std::size_t t = end; t < s.tokens.size(); ++t) s.tokens[t].position += delta;
        s.tokens.erase(s.tokens.begin() + static_cast<std::ptrdiff_t>(begin),
                       s.tokens.begin() + static_cast<std::ptrdiff_t>(end));
        s.next += delta;
    }
    /// The next token stands where the first one that goes stood; where that one has been freed, so many positions
    /// before the end.
    void truncate(Expected& s, std::size_t tokens) {
        if (tokens == s.tokens.size()) return;
        const Token first = s.tokens[tokens];
        const std::int64_t counted = s.next - static_cast<std::int64_t>(s.tokens.size() - tokens);
        const bool freed = first.may_be_freed && cache_->next_position(s.handle) == counted;
        s.next = freed ? counted : first.position;
        s.tokens.resize(tokens);
    }

    /// The sequence, once more, in a cache of its own that saw nothing else: both are asked the same.
    void compare(const Expected& s) {
        if (s.tokens.empty() || case_.window > 0) return;
        const auto fresh = test::scheme(case_.scheme).make(setup_.model, case_.options);
        const Sequence alone = fresh->create(), fork = cache_->fork(s.handle);
        for (std::size_t t = 0; t < s.tokens.size();) {
            Rows rows;
            fresh->shift(alone, t, s.tokens[t].position - fresh->next_position(alone));
            std::size_t n = 0;
            while (t + n < s.tokens.size() &&
                   s.tokens[t + n].position == s.tokens[t].position + static_cast<std::int64_t>(n)) {
                rows.push_back(s.tokens[t + n++].row);
            }
            step_of(*fresh, setup_.model, {{alone, n}}, rows, [] { return true; });
            t += n;
        }
        fresh->shift(alone, s.tokens.size(), s.next - fresh->next_position(alone));
        const Rows rows{make_row()};
        const test::Outputs a = step_of(*fresh, setup_.model, {{alone, 1}}, rows, [] { return false; });
        const test::Outputs b = step_of(*cache_, setup_.model, {{fork, 1}}, rows, [] { return false; });
        cache_->drop(fork);
        for (std::size_t i = 0; i < layers; ++i) {
            for (std::size_t c = 0; c < a[i].size(); ++c) {
                require(std::abs(double{a[i][c]} - double{b[i][c]}) < case_.same,
                        "a fresh cache answers " + std::to_string(a[i][c]) + " in layer " + std::to_string(i) +
                            ", this one " + std::to_string(b[i][c]));
            }
        }
    }

    void save_and_load(const Operation& o) {
        std::vector<Sequence> saved;
        for (std::size_t i = 0; i < 1 + o.b % 2 && i < sequences_.size(); ++i) {
            saved.push_back(sequences_[(o.a + i) % sequences_.size()].handle);
        }
        std::stringstream file;
        save(*cache_, saved, file, "note");
        const Loaded loaded = load(*cache_, file);
        require(loaded.sequences.size() == saved.size() && loaded.note == "note",
                "another number of sequences came back");
        for (std::size_t i = 0; i < saved.size(); ++i) {
            Expected& s = sequences_[(o.a + i) % sequences_.size()];
            cache_->drop(s.handle);
            s.handle = loaded.sequences[i];
        }
    }

    void refusals(const Expected& s) {
        const std::size_t n = s.tokens.size();
        const auto refused = [](auto&& f) {
            try {
                f();
            } catch (const error&) {
                return;
            }
            throw Failure("something was not refused");
        };
        refused([&] { cache_->truncate(s.handle, n + 1); });
        refused([&] { cache_->erase(s.handle, n, n + 1); });
        refused([&] { static_cast<void>(cache_->fork(s.handle, n + 1)); });
        refused([&] { cache_->shift(s.handle, n + 1, 1); });
        if (n > 0) refused([&] { cache_->shift(s.handle, n, s.tokens.back().position - s.next); });
        refused([&] { static_cast<void>(cache_->begin({{s.handle, 0}})); });
        const std::vector<Sequence> twice{s.handle, s.handle};
        const std::vector<std::size_t> parents{0, 0};
        refused([&] { cache_->gather(twice, parents); });
    }

    void do_one(const Operation& o) {
        const bool none = sequences_.empty();
        const std::string kind = none ? "create" : kinds[o.kind];
        Expected* s = none ? nullptr : &sequences_[o.a % sequences_.size()];
        const std::size_t n = none ? 0 : s->tokens.size();
        if (kind == "step") {
            step(o);
        } else if (kind == "create") {
            if (sequences_.size() < most_sequences) sequences_.push_back({cache_->create(), {}, 0});
        } else if (kind == "drop") {
            cache_->drop(s->handle);
            sequences_.erase(sequences_.begin() + (s - sequences_.data()));
        } else if (kind == "fork" || kind == "fork a prefix") {
            if (sequences_.size() == most_sequences) return;
            const std::size_t kept = kind == "fork" ? n : o.b % (n + 1);
            Expected made = *s;
            unless_freed(
                *s, [&] { made.handle = cache_->fork(s->handle, kept); },
                [&] {
                    truncate(made, kept);
                    sequences_.push_back(made);
                });
        } else if (kind == "truncate") {
            const std::size_t kept = o.c % 2 == 0 ? o.b % (n + 1) : n - std::min<std::size_t>(n, o.b % 8);
            unless_freed(
                *s, [&] { cache_->truncate(s->handle, kept); }, [&] { truncate(*s, kept); });
        } else if (kind == "erase") {
            const std::size_t begin = o.b % (n + 1), end = std::min<std::size_t>(n, begin + o.c % 40);
            unless_freed(
                *s, [&] { cache_->erase(s->handle, begin, end); },
                [&] {
                    if (begin < end) cut(*s, begin, end, -static_cast<std::int64_t>(end - begin));
                });
        } else if (kind == "shift") {
            const std::size_t begin = o.b % (n + 1);
            const std::int64_t here = begin < n ? s->tokens[begin].position : s->next;
            std::int64_t delta = o.c % 25;
            if (o.c % 2 == 0 && begin > 0) delta = -std::min(delta, here - s->tokens[begin - 1].position - 1);
            unless_freed(
                *s, [&] { cache_->shift(s->handle, begin, delta); },
                [&] {
                    for (std::size_t t = begin; t < n; ++t) s->tokens[t].position += delta;
                    s->next += delta;
                });
        } else if (kind == "gather") {
            std::vector<Sequence> handles;
            std::vector<std::size_t> parents;
            for (std::size_t i = 0; i < sequences_.size(); ++i) {
                handles.push_back(sequences_[i].handle);
                parents.push_back((o.b >> (3 * i)) % sequences_.size());
            }
            cache_->gather(handles, parents);
            const std::vector<Expected> before = sequences_;
            for (std::size_t i = 0; i < parents.size(); ++i) {
                sequences_[i] = before[parents[i]];
                sequences_[i].handle = handles[i];
            }
        } else if (kind == "seal") {
            cache_->seal(s->handle);
            note_window(*s);
        } else if (kind == "compact") {
            cache_->compact(s->handle);
        } else if (kind == "save and load") {
            save_and_load(o);
        } else if (kind == "requantize") {
            if (case_.scheme.find("requantizable") == std::string::npos) return;
            std::vector<Sequence> handles;
            for (const Expected& one : sequences_) handles.push_back(one.handle);
            cache_->requantize(handles, [&](const PageChoice& page) { return (page.behind + o.b) % 3 == 0; });
        } else if (kind == "compare") {
            compare(*s);
        } else {
            refusals(*s);
        }
    }

    Case case_;
    test::Setup setup_;
    test::CountingMemory memory_;
    std::shared_ptr<test::Cache> cache_;
    std::size_t empty_ = 0, counter_ = 0;
    std::vector<Expected> sequences_;
};

/// "" if all is well, else what is wrong.
std::string run(const Case& which, const std::vector<Operation>& operations) {
    try {
        Machine machine(which);
        for (const Operation& o : operations) machine.run(o);
        machine.finish();
    } catch (const std::exception& problem) {
        return problem.what();
    }
    return "";
}

/// The same failure with as few operations as leaving some out, half of them at first, can find.
std::vector<Operation> shrink(const Case& which, std::vector<Operation> operations) {
    for (std::size_t size = operations.size() / 2; size > 0; size /= 2) {
        for (std::size_t at = 0; at < operations.size();) {
            std::vector<Operation> fewer = operations;
            const std::size_t end = std::min(fewer.size(), at + size);
            fewer.erase(fewer.begin() + static_cast<std::ptrdiff_t>(at),
                        fewer.begin() + static_cast<std::ptrdiff_t>(end));
            if (!run(which, fewer).empty()) {
                operations = std::move(fewer);
            } else {
                at += size;
            }
        }
    }
    return operations;
}

std::size_t number_from(const char* variable, std::size_t otherwise) {
    const char* text = std::getenv(variable);
    return text != nullptr ? std::strtoull(text, nullptr, 10) : otherwise;
}

}  // namespace

TEST_CASE("random operations: every sequence answers as attention over its tokens does") {
#if defined(__SANITIZE_ADDRESS__)
    constexpr std::size_t usual = 20000;  // all of it would take minutes
#else
    constexpr std::size_t usual = 200000;
#endif
    const std::size_t total = number_from("XQUANT_OPERATIONS", usual), seed = number_from("XQUANT_SEED", 1);
    constexpr std::size_t episode = 500;  // operations on one cache
    std::size_t done = 0;
    for (std::size_t round = 0; done < total; ++round) {
        const Case& which = cases[round % cases.size()];
        test::Random random(static_cast<std::uint32_t>(seed + round));
        std::vector<Operation> operations(std::min(episode, total - done));
        for (Operation& o : operations) {
            o.kind = static_cast<unsigned>(random.below(kind_count));
            for (std::uint32_t* number : {&o.a, &o.b, &o.c})
                *number = static_cast<std::uint32_t>(random.below(1U << 20U));
        }
        const std::string problem = run(which, operations);
        if (!problem.empty()) {
            const std::vector<Operation> fewer = shrink(which, operations);
            std::string list;
            for (const Operation& o : fewer) list += "  " + text_of(o) + "\n";
            FAIL(which.scheme << ", seed " << seed + round << ": " << problem << "\n"
                              << fewer.size() << " operations are enough: " << run(which, fewer) << "\n"
                              << list);
        }
        done += operations.size();
    }
    WARN(done << " operations, seeds " << seed << " and on");
}
