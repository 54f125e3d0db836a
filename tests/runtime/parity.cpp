// One level against the headers, in a program that is linked with the level's own object file, and compiled with its
// flags: the one cache is reached through the loader and the interface, the other by its class. So whatever a cache
// does, both say and store the same, bit for bit. (tests/parity compares the levels' backends with each other,
// beside_headers.cpp each level with scalar code.)
#include <cstdio>
#include <cstring>
#include <exception>
#include <thread>

#include <xquant/instantiate.hpp>
#include <xquant/registry.hpp>
#include <xquant/runtime.hpp>
#include <xquant/runtime/entry.hpp>

#include "check.hpp"
#include "script.hpp"
#include "support/statistics.hpp"

// Both are in the level's object file.
XQUANT_EXTERN_CACHE(xquant::backend::best);
extern template std::unique_ptr<xquant::Cache<>> xquant::make_cache<xquant::backend::best>(std::string_view,
                                                                                           const xquant::Model&,
                                                                                           const xquant::Options&);

namespace {

struct TwoThreads {
    template <class F>
    void parallel_for(std::size_t n, F&& f) const {
        std::thread other([&] {
            for (std::size_t i = 0; i < n; i += 2) f(i);
        });
        for (std::size_t i = 1; i < n; i += 2) f(i);
        other.join();
    }
};

void compare(const std::string& scheme, xquant::LayerInput input = xquant::LayerInput::x) {
    test::Setup setup = script::model();
    for (xquant::Layer& layer : setup.model.layers) layer.input = input;
    const xquant::Calibration known = test::random_calibration(setup.model);
    if (xquant::runtime::find_scheme(scheme).needs == xquant::Needs::statistics) known.attach(setup.model);
    const auto with_headers = xquant::make_cache(scheme, setup.model, script::options());
    const auto with_runtime = xquant::runtime::make_cache(scheme, setup.model, script::options());
    const TwoThreads threads;
    const script::Record expected = script::run(*with_headers, setup.model, threads);
    const script::Record found = script::run(*with_runtime, setup.model, threads);
    check::that(!expected.stored.empty() && found.stored == expected.stored, scheme + ": stored bytes are equal");
    check::that(found.numbers == expected.numbers, scheme + ": sizes, positions and bytes are equal");
    const bool same_size = !expected.answers.empty() && found.answers.size() == expected.answers.size();
    const std::size_t bytes = expected.answers.size() * sizeof(float);
    check::that(same_size && std::memcmp(found.answers.data(), expected.answers.data(), bytes) == 0,
                scheme + ": answers are equal");
    const auto empty = xquant::runtime::make_cache(scheme, setup.model, script::options());
    static_cast<void>(empty->create());
    check::that(xquant::runtime::predict(scheme, setup.model, script::options(), 0) == empty->bytes(),
                scheme + ": predicted bytes");
}

}  // namespace

int main() {
    try {
        // The entry in this program's own object file: it adds the schemes of an SVD to those of the headers.
        check::that(xquant_runtime_level() != nullptr, "the level's object file has its entry");
        const xquant::runtime::LevelInfo level = xquant::runtime::level();
        check::that(
            level.backend == xquant::backend::best::name,
            "level " + level.name + " has backend " + level.backend + ", this program " + xquant::backend::best::name);
        std::size_t forms = 0;
        bool with_statistics = false;
        for (const xquant::SchemeInfo& scheme : xquant::runtime::schemes()) {
            with_statistics = with_statistics || scheme.needs == xquant::Needs::statistics;
            // Schemes that learn need rows of calibration, which this model does not have.
            for (std::size_t i = 0; i < scheme.forms.size() && scheme.needs != xquant::Needs::calibration; ++i) {
                compare(i == 0 ? scheme.name : scheme.name + ":group=" + std::to_string(scheme.forms[i].group));
                ++forms;
            }
        }
        for (const char* scheme : {"kv4", "f16", "kivi4"}) compare(scheme, xquant::LayerInput::keys_before_rope);
        if (with_statistics) compare("head4", xquant::LayerInput::keys_before_rope);
        std::printf("level %s: %zu schemes and groups, bit for bit as with the headers\n", level.name.c_str(), forms);
    } catch (const std::exception& error) {
        check::that(false, error.what());
    }
    return check::result("parity");
}
