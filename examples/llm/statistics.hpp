/// `xquant-llm calibrate`: what errors of a model's cache cost, learnt from texts and saved in a file.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include <xquant/calibration.hpp>

namespace llm {

class Model;

struct CalibrateOptions {
    std::string model, out;          // files
    std::vector<std::string> texts;  // files
    std::size_t context = 1024;      // tokens of a context
    std::size_t contexts = 20;       // contexts, spread evenly
    std::size_t from = 0, to = 0;    // tokens of each text that may be used; to 0: all
    std::size_t sinks = 4;           // first tokens of a context that are left out
    bool x = false;                  // also statistics of x
    std::size_t measured = 4;        // contexts on which layers are measured one by one; 0: they are not
    std::size_t threads = 0;         // 0: as many as the machine has
};

/// Writes the file, and says what it was made from. Throws llm::Error, xquant::error.
void calibrate_texts(const CalibrateOptions& options);

struct AllocateOptions {
    std::string model, calibration, out;  // files
    std::string form = "heads";           // heads or joint
    double bits = 0;                      // on average; 0: by bytes_per_token
    std::size_t bytes_per_token = 0;      // of all layers, scales and index included; 0: by bits
};

/// Writes a recipe: how many bits K and V of each layer get. Throws llm::Error, xquant::error.
void allocate(const AllocateOptions& options);

/// Throws xquant::file_error.
xquant::Calibration read_statistics(const std::string& file, const Model& model);

}  // namespace llm
