// Machine: how fast a machine reads memory and runs this library's kernels. Measured once (planner/measure.hpp), and
// kept in a file of a few lines.
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include <xquant/error.hpp>
#include <xquant/plan_types.hpp>
#include <xquant/types.hpp>

namespace xquant {

inline namespace XQUANT_ABI_NS {

/// The name of a kind, as an enumerator is written.
constexpr const char* to_string(ReadKind kind) noexcept {
    constexpr std::array<const char*, read_kinds> names{
        "rows",    "plain4",           "plain8",           "turned2",        "turned3",       "turned4",
        "turned8", "channel_product4", "channel_product8", "token_product4", "token_product8"};
    return names[static_cast<std::size_t>(kind)];
}

namespace detail {

/// Words of a line.
inline std::vector<std::string_view> words_of(std::string_view line) {
    std::vector<std::string_view> out;
    for (std::size_t at = 0; at < line.size();) {
        const std::size_t begin = line.find_first_not_of(" \t\r", at);
        if (begin == line.npos) break;
        const std::size_t end = (std::min)(line.find_first_of(" \t\r", begin), line.size());
        out.push_back(line.substr(begin, end - begin));
        at = end;
    }
    return out;
}

/// A number that is finite and not negative. Throws value_error.
inline double machine_number(std::string_view word, std::size_t line) {
    double value = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
    if (error != std::errc() || end != word.data() + word.size() || !std::isfinite(value) || value < 0) {
        raise<value_error>("machine, line ", line, ": '", word, "' is no number of 0 or more");
    }
    return value;
}

/// Throws value_error for a machine that nothing can be planned for.
inline void check_machine(const Machine& machine) {
    const auto must = [](bool holds, const char* name, double value) {
        if (!holds) raise<value_error>("machine: ", name, " is ", value, "; expected a positive number");
    };
    must(machine.threads >= 1, "threads", static_cast<double>(machine.threads));
    must(std::isfinite(machine.memory) && machine.memory > 0, "memory", machine.memory);
    must(std::isfinite(machine.f32) && machine.f32 > 0, "f32", machine.f32);
    must(std::isfinite(machine.int8) && machine.int8 > 0, "int8", machine.int8);
    must(std::isfinite(machine.page) && machine.page > 0, "page", machine.page);
    must(std::isfinite(machine.layer) && machine.layer > 0, "layer", machine.layer);
    for (std::size_t i = 0; i < read_kinds; ++i) {
        const ReadTime& time = machine.kernels[i];
        const double sum = time.channel + time.query + time.score;
        must(std::isfinite(sum) && time.channel >= 0 && time.query >= 0 && time.score >= 0 && sum > 0,
             to_string(static_cast<ReadKind>(i)), sum);
    }
}

}  // namespace detail

/// A machine as text: a line for each number, seconds and bytes a second. parse_machine reads it.
inline std::string to_string(const Machine& machine) {
    const auto number = [](double value) {
        std::array<char, 32> digits{};
        std::snprintf(digits.data(), digits.size(), " %.6g", value);
        return std::string(digits.data());
    };
    std::string out = "xquant machine 1\nthreads " + std::to_string(machine.threads) + "\n";
    out += "memory" + number(machine.memory) + "\nf32" + number(machine.f32) + "\nint8" + number(machine.int8) +
           "\npage" + number(machine.page) + "\nlayer" + number(machine.layer) + "\n";
    for (std::size_t i = 0; i < read_kinds; ++i) {
        out += to_string(static_cast<ReadKind>(i)) + number(machine.kernels[i].channel) +
               number(machine.kernels[i].query) + number(machine.kernels[i].score) + "\n";
    }
    return out;
}

/// The machine that to_string wrote. Throws value_error, with the line, for text that is none; lines may be in any
/// order.
inline Machine parse_machine(std::string_view text) {
    Machine out;
    constexpr std::array<const char*, 6> names{"threads", "memory", "f32", "int8", "page", "layer"};
    std::array<bool, names.size() + read_kinds> known{};
    const auto name_of = [&names](std::size_t entry) -> std::string_view {
        return entry < names.size() ? names[entry] : to_string(static_cast<ReadKind>(entry - names.size()));
    };
    std::size_t number = 0;
    for (std::size_t at = 0; at < text.size();) {
        const std::size_t end = (std::min)(text.find('\n', at), text.size());
        const std::vector<std::string_view> words = detail::words_of(text.substr(at, end - at));
        at = end + 1;
        ++number;
        if (number == 1) {
            if (words.size() != 3 || words[0] != "xquant" || words[1] != "machine" || words[2] != "1") {
                detail::raise<value_error>("machine, line 1: expected 'xquant machine 1'");
            }
            continue;
        }
        if (words.empty()) continue;
        std::size_t entry = 0;
        while (entry < known.size() && words[0] != name_of(entry)) {
            ++entry;
        }
        if (entry == known.size())
            detail::raise<value_error>("machine, line ", number, ": '", words[0], "' is not known");
        if (known[entry]) detail::raise<value_error>("machine, line ", number, ": ", words[0], " stands there twice");
        known[entry] = true;
        const std::size_t expected = entry < names.size() ? 2 : 4;
        if (words.size() != expected) {
            detail::raise<value_error>("machine, line ", number, ": ", words[0], " has ", words.size() - 1,
                                       " numbers; expected ", expected - 1);
        }
        const double first = detail::machine_number(words[1], number);
        if (entry == 0) {
            if (!(first >= 1 && first <= 65536 && first == std::floor(first))) {
                detail::raise<value_error>("machine, line ", number, ": threads is ", first, "; expected 1 to 65536");
            }
            out.threads = static_cast<std::size_t>(first);
        } else if (entry < names.size()) {
            double* const to[] = {&out.memory, &out.f32, &out.int8, &out.page, &out.layer};
            *to[entry - 1] = first;
        } else {
            out.kernels[entry - names.size()] = {first, detail::machine_number(words[2], number),
                                                 detail::machine_number(words[3], number)};
        }
    }
    for (std::size_t i = 0; i < known.size(); ++i) {
        if (known[i]) continue;
        detail::raise<value_error>("machine: no line has ", name_of(i),
                                   "; it was written by another version, or cut off: measure the machine again");
    }
    detail::check_machine(out);
    return out;
}

/// Writes a machine to a file. Throws value_error where it cannot be written, or nothing can be planned for it.
inline void save_machine(const Machine& machine, const std::string& path) {
    detail::check_machine(machine);
    std::ofstream out(path, std::ios::binary);
    if (!(out << to_string(machine) << std::flush)) {
        detail::raise<value_error>("machine: ", path, " cannot be written");
    }
}

/// Reads the machine that save_machine wrote. Throws value_error where there is no such file, or it has no machine.
inline Machine load_machine(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    if (!in) detail::raise<value_error>("machine: ", path, " cannot be read");
    const std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
    return parse_machine(text);
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
