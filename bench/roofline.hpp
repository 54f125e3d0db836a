// What one core of this machine can do at best, measured in the same run as the benchmarks that are compared with it.
//
//     stream    bytes read per second out of memory: a sum over four times the last-level cache, 128 MiB at least
//     f32       multiply-adds of the widest vectors, two operations each
//     int8      multiply-adds of unsigned with signed bytes (dpbusd, maddubs), two operations each
//
// Times are those of the thread, not of the wall: other programs on the machine slow memory down, but do not count.
#pragma once

#include <benchmark/benchmark.h>

#include <cstddef>
#include <string>

namespace bench {

struct Roofline {
    double stream = 0;  ///< bytes/s
    double f32 = 0;     ///< operations/s
    double int8 = 0;    ///< operations/s
    std::string f32_form, int8_form;
};

/// Measured at the first call, in half a second; the best of several rounds.
const Roofline& roofline();

/// Processor time of this thread, in seconds.
double thread_seconds();

/// Last-level cache in bytes; 32 MiB where the system does not say.
std::size_t last_level_cache();

/// Reads twice the last-level cache, so that what a benchmark reads next comes out of memory: as in a model, where the
/// weights of all layers pass between two looks at one layer's cache.
void evict_caches();

/// What one iteration of a benchmark has to read, and the multiply-adds that its products take, two operations each.
struct Work {
    double bytes = 0, operations = 0;
};

/// Counters that every benchmark has: GB/s, GOP/s, and both as shares of the machine's. `seconds` for all iterations.
void count(benchmark::State& state, const Work& work, double seconds);

}  // namespace bench
