// A cache of the headers in a program that uses the runtime, too.
#include "header_object.hpp"

#include <xquant/registry.hpp>

script::Record header_object(const std::string& scheme) {
    const test::Setup setup = script::model();
    const auto cache = xquant::make_cache(scheme, setup.model, script::options());
    return script::run(*cache, setup.model, xquant::Serial{});
}
