/// Hundreds of thousands of random operations on a cache, beside a model of it in float64 that is as plain as it can
/// be: lists of tokens. Whatever was done to a sequence, it answers as attention over its tokens does.
///
/// A failure prints the shortest list of operations that still fails, found by leaving out what is not needed.
/// XQUANT_OPERATIONS says how many are done for all schemes together (200000), XQUANT_SEED where to begin (1).
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>
#include <memory>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <xquant/persistence.hpp>

#include "cache/random_cases.hpp"
#include "support/catch.hpp"
#include "support/feed.hpp"
#include "support/memory.hpp"
#include "support/model.hpp"
#include "support/oracle.hpp"
#include "support/tolerance.hpp"

using namespace xquant;
using random_operations::Case;
using random_operations::layers;

namespace {

constexpr std::size_t most_sequences = 6, most_tokens = 400;

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

const char* const kinds[] = {"step",           "step",          "step",           "create", "drop",    "fork",
                             "fork a prefix",  "truncate",      "erase",          "erase",  "shift",   "gather",
                             "erase and keep", "shift a range", "place the next", "seal",   "compact", "save and load",
                             "requantize",     "compare",       "refusals"};
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
    explicit Machine(const Case& which, random_operations::Bounds bounds)
        : case_(which), bounds_(bounds), small_(which.kind, which.window) {
        which.change(small_);
        Options options = which.options;
        options.memory = &memory_;
        cache_ = which.make(small_.model(), options);
        empty_ = stored_pages();
    }

    void run(const Operation& o) {
        do_one(o);
        require(cache_->bytes().total() == memory_.bytes(), "bytes() is not what was asked of the memory resource");
        for (const Expected& s : sequences_) {
            require(cache_->size(s.handle) == s.tokens.size(), "a sequence has another size");
            require(cache_->next_position(s.handle) == s.next, "a sequence goes on at another position");
            check_positions(s, o.c % (s.tokens.size() + 1));
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
            const test::Rows rows = test::rows_of(small_.model().layers[i], i, 7, number, 1);
            row->k.push_back(small_.key(i, rows.x));
            row->v.push_back(small_.value(i, rows.x));
            row->x.push_back(rows.x);
            row->q.push_back(rows.q);
        }
        return row;
    }

    /// Attention of one token over those before it and itself: [H * Dh].
    [[nodiscard]] std::vector<double> attention(std::size_t index, const std::vector<Token>& tokens,
                                                std::size_t at) const {
        const Layer& layer = small_.model().layers[index];
        const std::size_t dh = layer.shape.head_dim, group = layer.shape.heads / layer.shape.kv_heads;
        const double scale = layer.softmax_scale > 0 ? layer.softmax_scale : 1 / std::sqrt(static_cast<double>(dh));
        const Token& query = tokens[at];
        std::vector<double> out(layer.shape.heads * dh, 0.0);
        for (std::size_t head = 0; head < layer.shape.heads; ++head) {
            const auto first = static_cast<std::ptrdiff_t>(head / group * dh);
            const double sink = layer.sink_logits != nullptr ? double{layer.sink_logits[head]} : -1e300;
            std::vector<double> scores;
            double highest = sink;
            for (std::size_t t = 0; t <= at; ++t) {
                const std::int64_t back = query.position - tokens[t].position;
                if (layer.window > 0 && back >= static_cast<std::int64_t>(layer.window)) {
                    scores.push_back(-1e300);
                    continue;
                }
                // Queries come after RoPE, so keys are turned by their positions.
                const std::vector<double>& k = tokens[t].row->k[index];
                std::vector<double> key(k.begin() + first, k.begin() + first + static_cast<std::ptrdiff_t>(dh));
                test::oracle_rope(layer.rope, tokens[t].position, key.data());
                double sum = 0;
                for (std::size_t c = 0; c < dh; ++c) {
                    sum += static_cast<double>(query.row->q[index][head * dh + c]) * key[c];
                }
                sum *= scale;
                if (layer.soft_cap > 0) sum = layer.soft_cap * std::tanh(sum / layer.soft_cap);
                if (layer.alibi_slopes != nullptr) sum -= double{layer.alibi_slopes[head]} * static_cast<double>(back);
                scores.push_back(sum);
                highest = std::max(highest, scores.back());
            }
            double total = std::exp(sink - highest);
            for (double& score : scores) total += score = std::exp(score - highest);
            for (std::size_t t = 0; t <= at; ++t) {
                for (std::size_t c = 0; c < dh; ++c) {
                    out[head * dh + c] += scores[t] / total * tokens[t].row->v[index][head / group * dh + c];
                }
            }
        }
        return out;
    }

    /// An answer to a row, beside the right one: in itself, and in 64 together, where errors of single rows even out.
    void check_row(const std::vector<std::vector<double>>& exact, const test::Outputs& out, std::size_t row) {
        test::RelativeDistance one;
        for (std::size_t i = 0; i < layers; ++i) {
            for (std::size_t c = 0; c < exact[i].size(); ++c) {
                const double found{out[i][row * exact[i].size() + c]};
                one.add(found, exact[i][c]);
                many_.add(found, exact[i][c]);
            }
        }
        require(one.value() < bounds_.row, "the answer to a row is off by " + std::to_string(one.value()) +
                                               " of itself, and may be by " + std::to_string(bounds_.row));
        if (++rows_checked_ % 64 != 0) return;
        require(many_.value() < bounds_.many, "the answers to 64 rows are off by " + std::to_string(many_.value()) +
                                                  " of themselves, and may be by " + std::to_string(bounds_.many));
        many_ = {};
    }

    using Rows = std::vector<std::shared_ptr<const Row>>;

    /// K of a layer's row as its input says: before RoPE, or after it.
    static std::vector<double> handed_over(const Layer& layer, std::vector<double> k, std::int64_t position) {
        for (std::size_t c = 0; c < k.size() && layer.input == LayerInput::keys_after_rope; c += layer.shape.head_dim) {
            test::oracle_rope(layer.rope, position, k.data() + c);
        }
        return k;
    }

    /// One step of a cache; outputs of each layer, token after token. With `shuffle`, tokens lie in rows in an order
    /// that follows from it.
    template <class Feed>
    static test::Outputs step_of(test::Cache& cache, const Model& model, std::vector<StepPart> parts,
                                 const Rows& tokens, Feed&& commits, std::uint32_t shuffle = 0) {
        std::vector<std::int64_t> positions_of;
        for (const StepPart& part : parts) {
            const std::int64_t next = cache.next_position(part.sequence);
            for (std::size_t k = 0; k < part.tokens; ++k) positions_of.push_back(next + static_cast<std::int64_t>(k));
        }
        std::vector<std::uint32_t> row_of(tokens.size());
        for (std::size_t i = 0; i < row_of.size(); ++i) row_of[i] = static_cast<std::uint32_t>(i);
        test::Random random(shuffle);
        for (std::size_t i = row_of.size(); shuffle > 0 && i > 1; --i)
            std::swap(row_of[i - 1], row_of[random.below(i)]);
        Rows rows(tokens.size());
        std::vector<std::int64_t> positions(tokens.size());
        for (std::size_t i = 0; i < tokens.size(); ++i) {
            rows[row_of[i]] = tokens[i];
            positions[row_of[i]] = positions_of[i];
        }
        std::size_t first = 0;
        for (StepPart& part : parts) {
            if (shuffle > 0) part.rows = std::span(row_of).subspan(first, part.tokens);
            first += part.tokens;
        }
        auto step = cache.begin(parts);
        test::Outputs out;
        for (std::size_t i = 0; i < layers; ++i) {
            const Layer& layer = model.layers[i];
            const LayerShape& shape = layer.shape;
            std::vector<float> x, k, v, q;
            for (std::size_t row = 0; row < rows.size(); ++row) {
                const Row& of = *rows[row];
                const std::vector<double> key = handed_over(layer, of.k[i], positions[row]);
                x.insert(x.end(), of.x[i].begin(), of.x[i].end());
                k.insert(k.end(), key.begin(), key.end());
                v.insert(v.end(), of.v[i].begin(), of.v[i].end());
                q.insert(q.end(), of.q[i].begin(), of.q[i].end());
            }
            const std::size_t width = shape.heads * shape.head_dim, r = shape.kv_width();
            if (layer.input == LayerInput::x) {
                step.append(i, MatrixView(x.data(), rows.size(), shape.width));
            } else {
                step.append_kv(i, MatrixView(k.data(), rows.size(), r), MatrixView(v.data(), rows.size(), r));
            }
            std::vector<float> answers(rows.size() * width);
            step.attend(i, MatrixView(q.data(), rows.size(), width), answers.data());
            out.emplace_back();
            for (const std::uint32_t row : row_of) {
                const auto at = answers.begin() + static_cast<std::ptrdiff_t>(row * width);
                out.back().insert(out.back().end(), at, at + static_cast<std::ptrdiff_t>(width));
            }
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
        const std::uint32_t shuffle = o.a % 4 == 3 ? o.b : 0;
        const test::Outputs out = step_of(
            *cache_, small_.model(), parts, rows, [&] { return commits; }, shuffle);
        std::size_t row = 0;
        for (std::size_t p = 0; p < parts.size(); ++p) {
            const std::size_t before = after[p].size() - parts[p].tokens;
            for (std::size_t k = 0; k < parts[p].tokens; ++k, ++row) {
                // All of a short step, some of a long one.
                if (parts[p].tokens > 16 && k % 16 != 0) continue;
                std::vector<std::vector<double>> exact;
                for (std::size_t i = 0; i < layers; ++i) exact.push_back(attention(i, after[p], before + k));
                check_row(exact, out, row);
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
    /// Some layer sees everything, so no position is forgotten.
    void check_positions(const Expected& s, std::size_t token) const {
        const std::int64_t position = token < s.tokens.size() ? s.tokens[token].position : s.next;
        require(cache_->position_of(s.handle, token) == position, "a token stands at another position");
        require(cache_->token_at(s.handle, position) == token, "another token stands at a position");
        require(token == 0 || cache_->token_at(s.handle, s.tokens[token - 1].position + 1) == token,
                "another token stands behind a gap");
    }

    /// The next token stands where the first one that goes stood.
    static void truncate(Expected& s, std::size_t tokens) {
        if (tokens < s.tokens.size()) s.next = s.tokens[tokens].position;
        s.tokens.resize(tokens);
    }

    /// The sequence, once more, in a cache of its own that saw nothing else: both are asked the same.
    void compare(const Expected& s) {
        if (s.tokens.empty() || case_.window > 0) return;
        const auto fresh = case_.make(small_.model(), case_.options);
        const Sequence alone = fresh->create(), fork = cache_->fork(s.handle);
        for (std::size_t t = 0; t < s.tokens.size();) {
            Rows rows;
            fresh->shift(alone, t, s.tokens[t].position - fresh->next_position(alone));
            std::size_t n = 0;
            while (t + n < s.tokens.size() &&
                   s.tokens[t + n].position == s.tokens[t].position + static_cast<std::int64_t>(n)) {
                rows.push_back(s.tokens[t + n++].row);
            }
            step_of(*fresh, small_.model(), {{alone, n}}, rows, [] { return true; });
            t += n;
        }
        fresh->shift(alone, s.tokens.size(), s.next - fresh->next_position(alone));
        const Rows rows{make_row()};
        const test::Outputs a = step_of(*fresh, small_.model(), {{alone, 1}}, rows, [] { return false; });
        const test::Outputs b = step_of(*cache_, small_.model(), {{fork, 1}}, rows, [] { return false; });
        cache_->drop(fork);
        const double off = test::relative_distance(b, a);
        const auto close = [](double found, double bound, const char* what) {
            require(found < bound, std::string(what) + " off by " + std::to_string(found) +
                                       " of what a fresh cache answers, and may be by " + std::to_string(bound));
        };
        if (case_.same_codes || case_.make_exact == nullptr) return close(off, 3e-4, "an answer is");
        // Both are off by what their codes do, each by its own; of 2 bits, that may be all of a single answer.
        close(off, 1.5 * bounds_.row, "an answer is");
        for (std::size_t i = 0; i < layers; ++i) {
            for (std::size_t c = 0; c < a[i].size(); ++c) compared_.add(double{b[i][c]}, double{a[i][c]});
        }
        if (++comparisons_ % 16 != 0) return;  // of eight, chance alone passed the bound once in 200,000 operations
        close(compared_.value(), bounds_.many, "sixteen answers are");
        compared_ = {};
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
        refused([&] { cache_->shift(s.handle, n, n + 1, 1); });
        refused([&] { static_cast<void>(cache_->position_of(s.handle, n + 1)); });
        if (n > 0) refused([&] { cache_->set_next_position(s.handle, s.tokens.back().position); });
        if (n > 0) refused([&] { cache_->shift(s.handle, 0, n, s.next - s.tokens.back().position); });
        const std::size_t least = cache_->shortest_prefix(s.handle);
        require(least == 0 || s.tokens[0].may_be_freed, "no row was freed, and short prefixes are refused");
        cache_->drop(cache_->fork(s.handle, least));
        if (least > 0) refused([&] { static_cast<void>(cache_->fork(s.handle, least - 1)); });
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
        } else if (kind == "erase and keep") {
            const std::size_t begin = o.b % (n + 1), end = std::min<std::size_t>(n, begin + o.c % 40);
            unless_freed(
                *s, [&] { cache_->erase(s->handle, begin, end, Gap::keep); }, [&] { cut(*s, begin, end, 0); });
        } else if (kind == "shift a range") {
            const std::size_t begin = o.b % (n + 1), end = std::min<std::size_t>(n, begin + o.c % 70);
            if (begin == end) return;
            // As far as there is room before and behind.
            const std::int64_t before = begin > 0 ? s->tokens[begin - 1].position : s->tokens[0].position - 20,
                               behind = end < n ? s->tokens[end].position : s->next,
                               room = s->tokens[begin].position - before - 1,
                               more = behind - s->tokens[end - 1].position - 1;
            const std::int64_t delta = o.c % (room + more + 1) - room;
            unless_freed(
                *s, [&] { cache_->shift(s->handle, begin, end, delta); },
                [&] {
                    for (std::size_t t = begin; t < end; ++t) s->tokens[t].position += delta;
                });
        } else if (kind == "place the next") {
            const std::int64_t last = n > 0 ? s->tokens.back().position : s->next - 20;
            const std::int64_t position = last + 1 + o.c % 30;
            unless_freed(
                *s, [&] { cache_->set_next_position(s->handle, position); }, [&] { s->next = position; });
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
            if (!case_.requantizes) return;
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
    random_operations::Bounds bounds_;
    random_operations::SmallModel small_;
    test::RelativeDistance many_, compared_;
    std::size_t rows_checked_ = 0, comparisons_ = 0;
    test::CountingMemory memory_;
    std::shared_ptr<test::Cache> cache_;
    std::size_t empty_ = 0, counter_ = 0;
    std::vector<Expected> sequences_;
};

/// "" if all is well, else what is wrong.
std::string run(const Case& which, random_operations::Bounds bounds, const std::vector<Operation>& operations) {
    try {
        Machine machine(which, bounds);
        for (const Operation& o : operations) machine.run(o);
        machine.finish();
    } catch (const std::exception& problem) {
        return problem.what();
    }
    return "";
}

/// As few operations that still fail as leaving some out, half of them at first, can find.
template <class Fails>
std::vector<Operation> shrink(Fails&& fails, std::vector<Operation> operations) {
    for (std::size_t size = operations.size() / 2; size > 0; size /= 2) {
        for (std::size_t at = 0; at < operations.size();) {
            std::vector<Operation> fewer = operations;
            const std::size_t end = std::min(fewer.size(), at + size);
            fewer.erase(fewer.begin() + static_cast<std::ptrdiff_t>(at),
                        fewer.begin() + static_cast<std::ptrdiff_t>(end));
            if (fails(fewer)) {
                operations = std::move(fewer);
            } else {
                at += size;
            }
        }
    }
    return operations;
}

std::string list_of(const std::vector<Operation>& operations) {
    std::string list;
    for (const Operation& o : operations) list += "  " + text_of(o) + "\n";
    return list;
}

std::size_t number_from(const char* variable, std::size_t otherwise) {
    const char* text = std::getenv(variable);
    return text != nullptr ? std::strtoull(text, nullptr, 10) : otherwise;
}

std::vector<Operation> random_list(std::size_t count, std::uint32_t seed) {
    test::Random random(seed);
    std::vector<Operation> operations(count);
    for (Operation& o : operations) {
        o.kind = static_cast<unsigned>(random.below(kind_count));
        for (std::uint32_t* number : {&o.a, &o.b, &o.c}) *number = static_cast<std::uint32_t>(random.below(1U << 20U));
    }
    return operations;
}

}  // namespace

TEST_CASE("random operations: every sequence answers as attention over its tokens does") {
#if defined(__SANITIZE_ADDRESS__)
    constexpr std::size_t usual = 20000;  // all of it would take minutes
#else
    constexpr std::size_t usual = 200000;
#endif
    const std::size_t total = number_from("XQUANT_OPERATIONS", usual), seed = number_from("XQUANT_SEED", 1);
    const std::vector<Case> cases = random_operations::make_cases();
    // Operations on one cache; every case has its turn.
    const std::size_t episode = std::clamp<std::size_t>(total / cases.size(), 50, 500);
    std::vector<random_operations::Bounds> bounds;
    for (const Case& one : cases) {
        INFO(one.name);
        bounds.push_back(random_operations::bounds_of(one));
        CHECK(bounds.back().many < 0.9);
    }
    std::size_t done = 0;
    for (std::size_t round = 0; done < total; ++round) {
        const std::size_t number = round % cases.size();
        const Case& which = cases[number];
        const auto operations = random_list(std::min(episode, total - done), static_cast<std::uint32_t>(seed + round));
        const auto problem = [&](const std::vector<Operation>& list) { return run(which, bounds[number], list); };
        const std::string first = problem(operations);
        if (!first.empty()) {
            const auto fewer = shrink([&](const auto& list) { return !problem(list).empty(); }, operations);
            FAIL(which.name << ", seed " << seed + round << ": " << first << "\n"
                            << fewer.size() << " operations are enough: " << problem(fewer) << "\n"
                            << list_of(fewer));
        }
        done += operations.size();
    }
    WARN(done << " operations on " << cases.size() << " kinds of caches, seeds " << seed << " and on");
}

TEST_CASE("a list of operations that fails is shrunk to those that it takes") {
    const std::vector<Operation> operations = random_list(300, 5);
    // A drop somewhere behind two forks.
    const auto fails = [](const std::vector<Operation>& list) {
        std::size_t forks = 0;
        for (const Operation& o : list) {
            if (std::string(kinds[o.kind]) == "fork") ++forks;
            if (std::string(kinds[o.kind]) == "drop" && forks >= 2) return true;
        }
        return false;
    };
    REQUIRE(fails(operations));
    const std::string list = list_of(shrink(fails, operations));
    INFO(list);
    CHECK(std::count(list.begin(), list.end(), '\n') == 3);
    CHECK(list.find("drop") > list.rfind("fork"));
}
