/// What `perplexity` refuses before it reads a file.
#include "perplexity.hpp"

#include <functional>
#include <string>

#include "catch.hpp"
#include "error.hpp"

using namespace llm;

TEST_CASE("numbers that do not fit are refused before any file is read", "[engine]") {
    const auto refusal = [](const std::function<void(PerplexityOptions&)>& change) {
        PerplexityOptions options;
        options.model = options.text = "no such file";
        options.schemes = {"kv8:rest=cl_x_rot3"};
        change(options);
        try {
            perplexity(options);
        } catch (const Error& error) {
            return std::string(error.what());
        }
        return std::string("nothing");
    };
    const auto has = [](const std::string& text, const char* part) { return text.find(part) != std::string::npos; };
    CHECK(has(refusal([](auto&) {}), "no such file"));
    CHECK(has(refusal([](auto& o) { o.step = 32; }), "kv8:rest=cl_x_rot3: --step 32 is not for schemes with rest="));
    CHECK(has(refusal([](auto& o) { o.chunks = 0; }), "--chunks must be 1 or more"));
    CHECK(has(refusal([](auto& o) { o.context = 1; }), "--context must be 2 or more"));
    CHECK(has(refusal([](auto& o) { o.sinks = o.context; }), "leaves nothing to quantize behind 1024 sinks"));
    CHECK(has(refusal([](auto& o) { o.tail = o.context; }), "leaves nothing to quantize before a tail of 1024"));
}
