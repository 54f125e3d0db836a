/// `xquant-llm plan` on a tiny model: its files, and what is refused.
#include "plan.hpp"

#include <nlohmann/json.hpp>
#include <string>
#include <vector>
#include <xquant/planner/machine.hpp>

#include "catch.hpp"
#include "error.hpp"
#include "folder.hpp"
#include "gguf.hpp"
#include "statistics.hpp"
#include "tiny_model.hpp"

using namespace llm;
using namespace llm::test;
using ::test::bytes_of;
using ::test::Folder;
using ::test::write_bytes;

namespace {

/// A folder with a model and a text, and a plan of it.
struct Files {
    Files() {
        const std::vector<std::byte> bytes = to_gguf(tiny_model()).bytes();
        options.model = folder / "model.gguf";
        write_bytes(options.model, std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
        options.machine = folder / "machine.txt";
        options.json = folder / "plan.json";
        options.schemes = {"f16", "kv8", "kv4", "head3", "kvquant4"};
        options.context = 300;
        options.threads = 1;
    }
    [[nodiscard]] nlohmann::json planned() const {
        plan(options);
        return nlohmann::json::parse(bytes_of(options.json));
    }
    [[nodiscard]] std::string refusal() const {
        try {
            plan(options);
        } catch (const std::exception& e) {
            return e.what();
        }
        return "";
    }

    Folder folder;
    PlanOptions options;
};

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

std::string refused_bytes(const std::string& text) {
    try {
        return std::to_string(parse_bytes(text));
    } catch (const Error& e) {
        return e.what();
    }
}

}  // namespace

TEST_CASE("numbers of bytes are read with their units") {
    CHECK(parse_bytes("1") == 1);
    CHECK(parse_bytes("1500") == 1500);
    CHECK(parse_bytes("64k") == 65536);
    CHECK(parse_bytes("64K") == 65536);
    CHECK(parse_bytes("2M") == 2097152);
    CHECK(parse_bytes("1.5G") == 1610612736);
    for (const char* text : {"", "k", "-1", "0", "3T", "3 k", "1kk", "x", "nan"}) {
        INFO(text);
        CHECK(has(refused_bytes(text), "is no number of bytes"));
    }
    CHECK(has(refused_bytes("1e30G"), "more bytes than can be counted"));
    CHECK(has(refused_bytes("inf"), "more bytes than can be counted"));
}

TEST_CASE("a plan is written and the machine is measured once") {
    Files files;
    files.options.memory = "300k";
    nlohmann::json found = files.planned();
    const std::string machine = bytes_of(files.options.machine);
    CHECK(xquant::parse_machine(machine).threads == 1);
    REQUIRE(found["schemes"].size() == 5);
    CHECK(found["context"] == 300);
    CHECK(found["memory"] == 300 * 1024);
    for (std::size_t i = 0; i < 3; ++i) {
        const nlohmann::json& scheme = found["schemes"][i];
        INFO(scheme.dump());
        CHECK(scheme["name"] == files.options.schemes[i]);
        CHECK(scheme["cache"].get<double>() > 0);
        CHECK(scheme["weights"].get<double>() > 0);
        CHECK(scheme["seconds"].get<double>() > 0);
        const double bytes = scheme["cache"].get<double>() + scheme["weights"].get<double>();
        CHECK(scheme["fits"] == (bytes <= 300 * 1024));
    }
    CHECK(found["schemes"][0]["kld"] == 0);
    CHECK(has(found["schemes"][2]["unknown"], "no statistics"));
    CHECK(has(found["schemes"][3]["unavailable"], "needs statistics"));
    CHECK(has(found["schemes"][4]["unavailable"], "Layer::calibration"));

    std::string other = machine;
    other.replace(other.find("memory"), other.find("f32") - other.find("memory"), "memory 1000\n");
    write_bytes(files.options.machine, other);
    found = files.planned();
    CHECK(bytes_of(files.options.machine) == other);
    const double memory = found["schemes"][1]["read"].get<double>() / 1000;
    CHECK(found["schemes"][1]["seconds"] == memory);
}

TEST_CASE("divergences are known with a calibration") {
    Files files;
    CalibrateOptions calibrate;
    calibrate.model = files.options.model;
    calibrate.out = files.options.calibration = files.folder / "model.xqcal";
    std::string text;
    for (int i = 0; i < 400; ++i) text += i % 7 == 3 ? ' ' : static_cast<char>('a' + i * i % 23);
    write_bytes(files.folder / "text.txt", text);
    calibrate.texts = {files.folder / "text.txt"};
    calibrate.context = 64;
    calibrate.contexts = 4;
    calibrate.measured = 2;
    calibrate.threads = 1;
    calibrate.x = true;
    calibrate_texts(calibrate);
    const nlohmann::json found = files.planned();
    CHECK(found["schemes"][1]["kld"].get<double>() > 0);
    CHECK(found["schemes"][2]["kld"].get<double>() > 50 * found["schemes"][1]["kld"].get<double>());
    CHECK(found["schemes"][3]["kld"].get<double>() > 0);
}

TEST_CASE("what cannot be planned is refused with its reason") {
    Files files;
    const auto after = [](auto change) {
        Files changed;
        change(changed.options);
        return changed.refusal();
    };
    CHECK(has(after([](PlanOptions& o) { o.schemes = {"kv4:tail=3"}; }), "scheme 'kv4:tail=3'"));
    CHECK(has(after([](PlanOptions& o) { o.schemes = {"f32"}; }), "scheme 'f32'"));
    CHECK(has(after([](PlanOptions& o) { o.schemes = {"kv5"}; }), "unknown scheme 'kv5'"));
    CHECK(has(after([](PlanOptions& o) { o.schemes = {}; }), "at least one"));
    CHECK(has(after([](PlanOptions& o) { o.context = 0; }), "a context of 0 tokens"));
    CHECK(has(after([](PlanOptions& o) { o.sequences = 0; }), "0 sequences"));
    CHECK(has(after([](PlanOptions& o) { o.memory = "many"; }), "'many' is no number of bytes"));
    CHECK(has(after([](PlanOptions& o) { o.machine = "/no/such/folder/m"; }), "cannot be written"));
    CHECK(has(after([](PlanOptions& o) { o.json = "/no/such/folder/p"; }), "can't be written"));
    static_cast<void>(files.planned());
    files.options.threads = 2;
    CHECK(has(files.refusal(), "was measured with 1 threads, and 2 are asked for"));
    write_bytes(files.options.machine, "nothing\n");
    CHECK(has(files.refusal(), "line 1: expected 'xquant machine 1'"));
}
