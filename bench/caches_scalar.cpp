#include "caches_of.hpp"
#include "support/compiled/scalar.hpp"

namespace bench {

Backend scalar_backend() { return {xq::backend::scalar::name, schemes_of<xq::backend::scalar>()}; }

const std::vector<Backend>& backends() {
    static const std::vector<Backend> all = [] {
        std::vector<Backend> out{scalar_backend()};
        if (Backend best = best_backend(); !best.schemes.empty()) out.push_back(std::move(best));
        return out;
    }();
    return all;
}

}  // namespace bench
