/// Drafts that are a tree: each path answers as a sequence that took it alone, and one that is kept goes on as one.
#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/complaint.hpp"
#include "support/feed.hpp"
#include "support/memory.hpp"
#include "support/model.hpp"
#include "support/tolerance.hpp"

using namespace xquant;
using test::complaint;
using test::contains;
using test::Feed;
using test::Scheme;

namespace {

constexpr std::size_t d = 24, heads = 32, layer_count = 4;  // of small_model
using Parents = std::vector<std::int32_t>;
using Path = std::vector<std::size_t>;

/// Layers that see everything, a window, a chunk; paths are longer than these.
test::Setup tree_model() {
    test::Setup setup = test::small_model();
    setup.model.layers[1].window = 3;
    setup.model.layers[3].chunk = 3;
    return setup;
}

const Parents branching{-1, 0, 1, 0, 1, -1, 5, 5, 2, 4, -1, 8};

Parents random_tree(std::uint32_t seed, std::size_t n) {
    test::Random random(seed);
    Parents out;
    for (std::size_t i = 0; i < n; ++i) {
        // The row before it, half the time, so that there are runs.
        const auto before = static_cast<std::int32_t>(i) - 1;
        out.push_back(random.below(2) == 0 ? before : static_cast<std::int32_t>(random.below(i + 1)) - 1);
    }
    return out;
}

Path path_to(const Parents& parents, std::size_t leaf) {
    Path out{leaf};
    while (parents[out.back()] >= 0) out.push_back(static_cast<std::size_t>(parents[out.back()]));
    std::reverse(out.begin(), out.end());
    return out;
}

/// Rows whose numbers depend on the node of the tree alone.
test::Rows rows_of_nodes(const Layer& layer, std::size_t index, const Path& nodes) {
    test::Rows all;
    for (const std::size_t node : nodes) {
        const test::Rows one = test::rows_of(layer, index, 77, node, 1);
        all.x.insert(all.x.end(), one.x.begin(), one.x.end());
        all.q.insert(all.q.end(), one.q.begin(), one.q.end());
    }
    return all;
}

/// All layers of a step over these nodes; behind the last layer, once more the first ones, as they are stored. Answers
/// [layers, and layers read late][rows].
test::Outputs run_nodes(test::Cache::Step& step, const Model& model, const Path& nodes, std::size_t late) {
    test::Outputs out;
    std::vector<test::Rows> rows;
    const auto attend = [&](std::size_t layer) {
        out.emplace_back(nodes.size() * heads);
        step.attend(layer, MatrixView(rows[layer].q.data(), nodes.size(), heads), out.back().data());
    };
    for (std::size_t layer = 0; layer < layer_count; ++layer) {
        rows.push_back(rows_of_nodes(model.layers[layer], layer, nodes));
        step.append(layer, MatrixView(rows[layer].x.data(), nodes.size(), d));
        attend(layer);
    }
    for (std::size_t layer = 0; layer < late; ++layer) attend(layer);
    return out;
}

Path all_nodes(std::size_t n) {
    Path out(n);
    for (std::size_t i = 0; i < n; ++i) out[i] = i;
    return out;
}

/// Rows of answers.
test::Outputs rows_at(const test::Outputs& from, const Path& rows) {
    test::Outputs out;
    for (const std::vector<float>& all : from) {
        out.emplace_back();
        for (const std::size_t row : rows) {
            const auto at = all.begin() + static_cast<std::ptrdiff_t>(row * heads);
            out.back().insert(out.back().end(), at, at + heads);
        }
    }
    return out;
}

/// A sequence of so many tokens, some of which moved.
Feed base_of(test::Cache& cache, const Model& model, std::size_t tokens) {
    Feed base{cache.create(), 1};
    if (tokens > 0) test::feed(cache, model, {{&base, tokens}});
    return base;
}

}  // namespace

TEST_CASE("every path of a tree answers as a sequence that took that path alone, whatever the scheme") {
    const test::Setup setup = tree_model();
    const Parents trees[] = {branching, random_tree(1, 9), random_tree(2, 20), Parents(5, -1)};
    for (const Scheme& scheme : test::schemes()) {
        const double bound = scheme.exact ? 1e-5 : test::tolerance(scheme, test::small_model().model);
        for (const std::size_t tokens : {std::size_t{0}, std::size_t{3}, std::size_t{150}}) {
            for (const bool strict : {false, true}) {
                // Strict caches read what is old from codes, and in a tree more tokens are.
                const std::size_t recent = strict ? 30 : tokens % 50;
                const Options options{
                    .sinks = 4, .recent = recent, .rows = DType::f32, .weights = WeightType::f32, .strict = strict};
                const auto cache = scheme.make(setup.model, options);
                const Feed base = base_of(*cache, setup.model, tokens);
                if (tokens > 10) cache->shift(base.sequence, 6, -2 + 9);
                for (const Parents& parents : trees) {
                    INFO(scheme.name << ", behind " << tokens << " tokens, a tree of " << parents.size()
                                     << (strict ? ", strict" : ""));
                    const std::size_t late = scheme.cross_layer ? 2 : layer_count - 1;
                    const Sequence forked = cache->fork(base.sequence);
                    auto step = cache->begin({{forked, parents.size(), parents}});
                    const test::Outputs tree = run_nodes(step, setup.model, all_nodes(parents.size()), late);
                    test::Outputs found(tree.size()), wanted(tree.size());
                    for (std::size_t leaf = 0; leaf < parents.size(); ++leaf) {
                        const Path path = path_to(parents, leaf);
                        const Sequence alone = cache->fork(base.sequence);
                        auto straight = cache->begin({{alone, path.size()}});
                        const test::Outputs answers = run_nodes(straight, setup.model, path, late);
                        const test::Outputs in_tree = rows_at(tree, path);
                        for (std::size_t layer = 0; layer < tree.size(); ++layer) {
                            wanted[layer].insert(wanted[layer].end(), answers[layer].begin(), answers[layer].end());
                            found[layer].insert(found[layer].end(), in_tree[layer].begin(), in_tree[layer].end());
                        }
                    }
                    CHECK(test::relative_distance(found, wanted) < bound);
                }
            }
        }
    }
}

TEST_CASE("a path that is kept goes on as a sequence that took it alone, whatever the scheme") {
    for (const bool limits : {true, false}) {
        const test::Setup setup = limits ? tree_model() : test::small_model();
        for (const Scheme& scheme : test::schemes()) {
            for (const auto& [tokens, recent] :
                 {std::pair<std::size_t, std::size_t>{140, 40}, {140, 0}, {0, 40}, {2, 3}}) {
                // Row 4 stands right behind row 3, and follows row 1: it is kept, and the slot before it is not.
                const Path paths[] = {path_to(branching, 11), path_to(branching, 9), path_to(branching, 7), {}};
                for (const Path& path : paths) {
                    INFO(scheme.name << ", behind " << tokens << " tokens, recent " << recent << ", a path of "
                                     << path.size());
                    test::CountingMemory memory;
                    const Options options{.sinks = 4,
                                          .recent = recent,
                                          .rows = DType::f32,
                                          .weights = WeightType::f32,
                                          .memory = &memory};
                    const auto cache = scheme.make(setup.model, options), alone = scheme.make(setup.model, options);
                    Feed a = base_of(*cache, setup.model, tokens), b = base_of(*alone, setup.model, tokens);
                    {
                        auto step = cache->begin({{a.sequence, branching.size(), branching}});
                        static_cast<void>(run_nodes(step, setup.model, all_nodes(branching.size()), 0));
                        step.commit(path);
                    }
                    if (!path.empty()) {
                        auto step = alone->begin({{b.sequence, path.size()}});
                        static_cast<void>(run_nodes(step, setup.model, path, 0));
                        step.commit();
                    }
                    CHECK(cache->size(a.sequence) == tokens + path.size());
                    CHECK(cache->next_position(a.sequence) == static_cast<std::int64_t>(tokens + path.size()));
                    CHECK(cache->bytes().workspace == 0);
                    CHECK(cache->bytes().total() + alone->bytes().total() == memory.bytes());
                    a.tokens = b.tokens = 500;
                    for (const std::size_t more : {1, 5, 1, 200}) {
                        test::feed(*cache, setup.model, {{&a, more}});
                        test::feed(*alone, setup.model, {{&b, more}});
                    }
                    const double bound = scheme.exact ? 1e-5 : test::tolerance(scheme, test::small_model().model);
                    CHECK(test::relative_distance(a, b, 207) < bound);
                    // Rows of the tree were not encoded, so codes are the same to the bit. (Windows free rows of the
                    // tail that a tree pushes into codes.)
                    if (limits || tokens != 140 || recent < branching.size()) continue;
                    const auto codes_of = [&](test::Cache& in, Sequence sequence) {
                        std::vector<test::StoredPage> pages =
                            test::stored_pages(in, sequence, scheme, setup.model, options);
                        std::erase_if(pages,
                                      [](const test::StoredPage& page) { return page.purpose != Purpose::codes; });
                        return pages;
                    };
                    const std::vector<test::StoredPage> codes = codes_of(*cache, a.sequence);
                    CHECK(codes.size() > 1);
                    CHECK(codes == codes_of(*alone, b.sequence));
                }
            }
        }
    }
}

TEST_CASE("a step may have trees and plain sequences; of plain ones a kept path is a beginning") {
    const test::Setup setup = tree_model();
    for (const char* name : {"f32 x, rotated", "f32 k and v after RoPE, Hadamard", "f32 cross-layer x"}) {
        INFO(name);
        const Options options{.sinks = 4, .recent = 40, .rows = DType::f32, .weights = WeightType::f32};
        const auto cache = test::scheme(name).make(setup.model, options),
                   alone = test::scheme(name).make(setup.model, options);
        std::vector<Feed> feeds, fresh;
        for (const std::size_t tokens : {70, 5, 40, 9}) {
            feeds.push_back(base_of(*cache, setup.model, tokens));
            fresh.push_back(base_of(*alone, setup.model, tokens));
        }
        const Parents two{-1, -1, 1};
        const std::size_t n = branching.size();
        const Path nodes = all_nodes(n + 3 + 3 + 2);
        auto step = cache->begin({{feeds[0].sequence, n, branching},
                                  {feeds[1].sequence, 3},
                                  {feeds[2].sequence, 3, two},
                                  {feeds[3].sequence, 2}});
        const test::Outputs answers = run_nodes(step, setup.model, nodes, 0);
        const Path kept[] = {{0, 1, 4, 9}, {n, n + 1}, {n + 4, n + 5}, {}};
        Path list;
        for (const Path& path : kept) list.insert(list.end(), path.begin(), path.end());
        step.commit(list);
        for (std::size_t i = 0; i < 4; ++i) {
            if (!kept[i].empty()) {
                auto straight = alone->begin({{fresh[i].sequence, kept[i].size()}});
                const test::Outputs wanted = run_nodes(straight, setup.model, kept[i], 0);
                CHECK(test::relative_distance(rows_at(answers, kept[i]), wanted) < 1e-5);
                straight.commit();
            }
            CHECK(cache->size(feeds[i].sequence) == alone->size(fresh[i].sequence));
            test::feed(*cache, setup.model, {{&feeds[i], 50}});
            test::feed(*alone, setup.model, {{&fresh[i], 50}});
            CHECK(test::relative_distance(feeds[i], fresh[i], 50) < 1e-5);
        }
    }
}

TEST_CASE("drafts that are refused again and again leave their slots to what comes next") {
    const test::Setup setup = test::small_model();
    for (const Scheme& scheme : test::schemes()) {
        INFO(scheme.name);
        const auto cache = scheme.make(setup.model, {.sinks = 4, .recent = 16});
        Feed a = base_of(*cache, setup.model, 200);
        std::size_t after_one = 0;
        for (int round = 0; round < 10; ++round) {
            auto step = cache->begin({{a.sequence, branching.size(), branching}});
            static_cast<void>(run_nodes(step, setup.model, all_nodes(branching.size()), 0));
            step.commit(Path{});
            if (round == 0) after_one = cache->bytes().total();
            CHECK(cache->bytes().total() == after_one);
        }
        CHECK(cache->size(a.sequence) == 200);
    }
}

TEST_CASE("trees and paths that are none are refused, and the step goes on") {
    const test::Setup setup = test::small_model();
    const auto cache = test::scheme("x 4").make(setup.model, {});
    const Feed a = base_of(*cache, setup.model, 20), b = base_of(*cache, setup.model, 5);
    const Bytes before = cache->bytes();
    const auto refused = [&](const Parents& parents, std::size_t tokens) {
        const std::string said = complaint<shape_error>([&] {
            static_cast<void>(cache->begin({{b.sequence, 1}, {a.sequence, tokens, parents}}));
        });
        CHECK(cache->bytes() == before);
        return said;
    };
    CHECK(contains(refused({-1, 0}, 3), "2 parents for the 3 tokens of sequence 1 of the list; expected one for each"));
    CHECK(
        contains(refused({0, 0}, 2), "the parent of token 0 of sequence 1 of the list is 0; expected a token before"));
    CHECK(contains(refused({-1, 0, 3, 0}, 4), "the parent of token 2 of sequence 1 of the list is 3"));
    CHECK(contains(refused({-1, -2}, 2), "the parent of token 1 of sequence 1 of the list is -2"));

    const Parents tree{-1, 0, 0, 2};
    auto step = cache->begin({{b.sequence, 2}, {a.sequence, 4, tree}});
    const auto keep = [&](Path rows) { return complaint<shape_error>([&] { step.commit(rows); }); };
    CHECK(contains(complaint<state_error>([&] { step.commit({0}); }), "0 of 4 layers were appended"));
    static_cast<void>(run_nodes(step, setup.model, all_nodes(6), 0));
    const test::Rows rows = rows_of_nodes(setup.model.layers[3], 3, all_nodes(6));
    std::vector<float> out(6 * heads);
    CHECK(contains(complaint<state_error>(
                       [&] { step.attend(3, MatrixView(rows.q.data(), 6, heads), out.data(), Visibility::whole); }),
                   "are a tree, which Visibility::causal alone serves"));
    CHECK(contains(complaint<state_error>([&] { step.commit(); }),
                   "the new tokens of sequence 1 of the step are a tree; say which rows stay"));
    CHECK(contains(keep({1}),
                   "entry 0 of the list is row 1, which follows another row of its sequence; expected a row "
                   "that follows what was stored"));
    CHECK(contains(keep({0, 2, 3, 5}),
                   "entry 3 of the list is row 5, which follows another row of its sequence; "
                   "expected a row that follows the entry before it"));
    CHECK(contains(keep({0, 0}), "entry 1 of the list is row 0, which follows what was stored"));
    CHECK(contains(keep({2, 0}), "entry 1 of the list is row 0, and the entry before it is row 2"));
    CHECK(contains(keep({0, 2, 6}), "entry 2 of the list is row 6, but the step has 6 rows"));
    CHECK(cache->size(a.sequence) == 20);
    step.commit({0, 1, 2, 4, 5});
    CHECK(cache->size(b.sequence) == 7);
    CHECK(cache->size(a.sequence) == 23);
    CHECK(contains(complaint<state_error>([&] { step.commit({0}); }), "has ended"));
}
