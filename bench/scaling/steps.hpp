// Decode steps of a cache with so many tokens, sequences and layers: how long they take, and their parts.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include <llm/threads.hpp>

#include "subjects.hpp"

namespace bench {

/// A scheme's cache on a shape, and a sequence of it that grows. Shorter sequences are forks of it.
class Subject {
public:
    Subject(const Shape& shape, const Kind& kind, std::size_t layers);

    /// Appends tokens until there are so many.
    void grow(std::size_t tokens);
    /// `count` sequences of the first `tokens` tokens, `tokens` no more than there are. The first one shares its pages
    /// with the sequence that grows; the others have pages of their own, so that no two of them are read together.
    [[nodiscard]] std::vector<xquant::Sequence> sequences(std::size_t tokens, std::size_t count);
    void drop(const std::vector<xquant::Sequence>& sequences);

    [[nodiscard]] const Shape& shape() const { return *shape_; }
    [[nodiscard]] const Kind& kind() const { return *kind_; }
    [[nodiscard]] const RandomModel& random() const { return random_; }
    [[nodiscard]] Caches& cache() { return *cache_; }
    [[nodiscard]] std::size_t layers() const { return layers_; }

private:
    const Shape* shape_;
    const Kind* kind_;
    std::size_t layers_, size_ = 0;
    RandomModel random_;
    std::unique_ptr<Caches> cache_;
    xquant::Sequence grown_;
};

/// One call of an executor, and what each of its tasks took on one thread.
struct Call {
    bool attends = false;
    std::vector<double> seconds;
};

/// What was measured of a cell; seconds of one decode step, all layers, all sequences.
struct Measured {
    std::string scheme, shape;
    std::size_t tokens = 0, sequences = 0, layers = 0;
    std::size_t steps = 0, appends = 0;                    ///< how many whole steps, and how many without attention
    double begin = 0, append = 0, attend = 0, commit = 0;  ///< processor seconds of one thread
    double handling = 0;                                   ///< of these, those outside of tasks
    double wall = 0, wall_two = 0;                         ///< seconds of one thread, and of two; 0: not measured
    Load load;
    std::vector<Call> calls;  ///< of a step, where two threads were measured
    double error = 0;         ///< of the answer, where it was compared with the exact one
};

/// Steps of one cell, one at a time, so that schemes can take turns.
class Cell {
public:
    /// Whole steps until `seconds` of one thread are spent, from `least` to 128; where `two` is given, as many on two
    /// threads. Then steps without attention, until there were 128 of both kinds: a page is encoded once in so many,
    /// which the means of begin, append and commit then have in them as often as it happens.
    Cell(Subject& subject, std::size_t tokens, std::size_t count, llm::ThreadPool* two, double seconds,
         std::size_t least);
    Cell(const Cell&) = delete;
    Cell& operator=(const Cell&) = delete;
    ~Cell();

    [[nodiscard]] bool done() const;
    /// One more step, or on one thread and then on two. Throws std::runtime_error where an answer is wrong.
    void advance();
    [[nodiscard]] Measured result() const;

private:
    struct Times {
        double begin = 0, append = 0, attend = 0, commit = 0, wall = 0;
        double outside = 0;  ///< of append and attend, what is in no task
    };
    template <class Executor>
    Times step(Executor& threads, bool attends);
    void check();
    [[nodiscard]] bool attended() const;

    Subject* subject_;
    std::vector<xquant::Sequence> sequences_;
    std::vector<xquant::StepPart> parts_;
    std::size_t tokens_, added_ = 0;  ///< tokens at first, and how many steps have added one
    llm::ThreadPool* two_;
    double seconds_, spent_ = 0, error_ = 0;
    std::size_t least_;
    std::vector<float> x_, k_, v_, q_, out_, first_out_;
    std::vector<Times> whole_, appends_;
    std::vector<double> two_walls_;
    std::vector<std::vector<Call>> recorded_;
};

}  // namespace bench
