/// A machine in a file, and what is refused.
#include <xquant/planner/measure.hpp>

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/complaint.hpp"
#include "support/folder.hpp"

using namespace xquant;
using test::complaint;
using test::contains;

namespace {

Machine some_machine() {
    Machine out;
    out.threads = 3;
    out.memory = 2.5e10;
    out.f32 = 1.25e11;
    out.int8 = 5e11;
    out.page = 7e-7;
    out.layer = 3e-5;
    for (std::size_t i = 0; i < read_kinds; ++i)
        out.kernels[i] = {std::stod(std::to_string(i + 1) + "e-12"), 2e-13, 3e-10};
    return out;
}

/// The text of some_machine with one part replaced.
std::string replaced(const std::string& from, const std::string& to) {
    std::string text = to_string(some_machine());
    const std::size_t at = text.find(from);
    REQUIRE(at != std::string::npos);
    return text.replace(at, from.size(), to);
}

std::string refusal(const std::string& text) {
    return complaint<value_error>([&] { static_cast<void>(parse_machine(text)); });
}

}  // namespace

TEST_CASE("a machine comes back from its text and from its file") {
    const Machine machine = some_machine();
    CHECK(parse_machine(to_string(machine)) == machine);
    const test::Folder folder;
    const std::string path = folder / "machine.txt";
    save_machine(machine, path);
    CHECK(load_machine(path) == machine);
    // Lines may stand in any order, with more white space.
    CHECK(parse_machine("xquant machine 1\n\n" + std::string("int8  5e11\r\n") +
                        to_string(machine).substr(17).erase(to_string(machine).find("int8") - 17, 11)) == machine);
}

TEST_CASE("text that is no machine is refused with its line") {
    const std::vector<std::pair<std::string, std::string>> cases{
        {"", "no line has threads"},
        {"something\n", "line 1: expected 'xquant machine 1'"},
        {replaced("xquant machine 1", "xquant machine 2"), "line 1: expected"},
        {replaced("threads 3", "threads 0"), "line 2: threads is 0; expected 1 to 65536"},
        {replaced("threads 3", "threads 2.5"), "threads is 2.5"},
        {replaced("memory 2.5e+10", "memory -1"), "line 3: '-1' is no number of 0 or more"},
        {replaced("memory 2.5e+10", "memory 2.5e+10x"), "'2.5e+10x' is no number"},
        {replaced("memory 2.5e+10", "memory nan"), "'nan' is no number"},
        {replaced("memory 2.5e+10", "memory 0"), "memory is 0; expected a positive number"},
        {replaced("memory 2.5e+10", "memory"), "line 3: memory has 0 numbers; expected 1"},
        {replaced("memory 2.5e+10\n", ""), "no line has memory"},
        {replaced("rows 1e-12 2e-13 3e-10", "rows 1e-12 2e-13"), "line 8: rows has 2 numbers; expected 3"},
        {replaced("rows 1e-12 2e-13 3e-10", "rows 0 0 0"), "rows is 0; expected a positive number"},
        {replaced("plain4", "plain9"), "line 9: 'plain9' is not known"},
        {replaced("plain4", "plain8"), "line 10: plain8 stands there twice"},
    };
    for (const auto& [text, words] : cases) {
        INFO(text << refusal(text));
        CHECK(contains(refusal(text), words));
    }
    // Cut off anywhere at the end of a line.
    const std::string whole = to_string(some_machine());
    for (std::size_t at = whole.find('\n'); at + 1 < whole.size(); at = whole.find('\n', at + 1)) {
        INFO(whole.substr(0, at));
        CHECK(contains(refusal(whole.substr(0, at)), "no line has "));
    }
    const test::Folder folder;
    CHECK(
        contains(complaint<value_error>([&] { static_cast<void>(load_machine(folder / "none")); }), "cannot be read"));
    CHECK(contains(complaint<value_error>([&] { save_machine(some_machine(), folder / "no/such/folder"); }),
                   "cannot be written"));
    CHECK(contains(complaint<value_error>([&] { save_machine(Machine{}, folder / "empty"); }), "memory is 0"));
}

TEST_CASE("this machine can be measured") {
    const Machine machine = measure_machine(2);
    INFO(to_string(machine));
    CHECK(machine.threads == 2);
    CHECK(complaint<value_error>([&] { detail::check_machine(machine); }).empty());
    // Between a slow processor's and ten times a fast one's.
    CHECK(machine.memory > 1e7);
    CHECK(machine.memory < 1e13);
    CHECK(machine.f32 > 1e7);
    CHECK(machine.f32 < 1e13);
    for (const ReadTime& time : machine.kernels) CHECK(time.channel + time.query + time.score < 1e-5);
    CHECK(contains(complaint<shape_error>([] { static_cast<void>(measure_machine(0)); }), "0 threads"));
}
