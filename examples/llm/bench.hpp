/// `xquant-llm bench`: how much longer a token takes the more tokens are cached.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "threads.hpp"

namespace llm {

class Model;

struct BenchOptions {
    std::string model;
    std::vector<std::string> schemes{"f16", "kv8", "kv4", "svd_head4", "x4_rot"};
    std::vector<std::size_t> depths{0, 2048, 7600};  // tokens cached before the ones that are timed, rising
    std::size_t tokens = 16;                         // a sample: this many tokens, one after the other
    std::size_t repetitions = 3;                     // samples of a scheme and depth
    std::size_t sinks = 4, tail = 128;               // tokens kept in f16
    std::size_t threads = 0;                         // 0: as many as the machine has
    std::string rebuilt;      // bytes of keys that each cache keeps rebuilt, with k, M or G; empty: none
    std::string json;         // samples go to this file, too
    std::string calibration;  // what schemes that need statistics learnt; or empty
};

struct BenchSample {
    std::string scheme;
    std::size_t depth = 0;    // tokens cached before the first timed one
    double token = 0;         // seconds a token, all of it
    double cache = 0;         // of these, inside the cache
    std::size_t rebuilt = 0;  // bytes of rebuilt keys at the end
};

/// The samples in the order they were taken. `model` and `json` of the options are not looked at. Throws llm::Error.
std::vector<BenchSample> bench_samples(const Model& model, const BenchOptions& options, ThreadPool& pool);

/// A table on stdout: medians, and the slope of the time over depth. Schemes take turns, so that a slow minute of the
/// machine hits all of them; with one thread, times are processor times. Throws llm::Error.
void bench(const BenchOptions& options);

}  // namespace llm
