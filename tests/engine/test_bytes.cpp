/// `xquant-llm bytes`: every scheme of the library has a row, those whose bits are divided too.
#include "bytes.hpp"

#include <string>

#include "catch.hpp"
#include "error.hpp"
#include "support/folder.hpp"

using namespace llm;

namespace {

/// Of the row of a scheme; 0 without one.
double bits_of(const std::string& json, const std::string& scheme) {
    const std::string field = "\"bits_per_token_layer\": ";
    const std::size_t row = json.find("\"scheme\": \"" + scheme + "\"");
    return row == std::string::npos ? 0 : std::stod(json.substr(json.rfind(field, row) + field.size()));
}

}  // namespace

TEST_CASE("every scheme that serves a shape has its bytes, without weights or statistics", "[engine]") {
    const ::test::Folder folder;
    const std::string path = folder / "bytes.json";
    BytesOptions options{.shape = "llama3_8b", .schemes = {}, .tokens = 1000, .json = path};
    bytes(options);
    const std::string json = ::test::bytes_of(path);
    CHECK(bits_of(json, "kv4") == Approx(2 * 1024 * 4.5).margin(0.5));
    CHECK(bits_of(json, "head4") == Approx(2 * 1024 * 4.25).margin(0.5));
    CHECK(bits_of(json, "svd_head4") == Approx(2 * 1024 * 4.25).margin(0.5));
    CHECK(bits_of(json, "turboquant4") == 0);
    for (const char* name : {"f32", "turboquant4", "nothing"}) {
        options.schemes = {name};
        CHECK_THROWS_AS(bytes(options), Error);
    }
}
