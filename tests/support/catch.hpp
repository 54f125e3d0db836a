/// Catch2, version 3 or 2. Tests use what both have: no Approx, no matchers, no SKIP.
#pragma once

#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
#else
#include <catch2/catch.hpp>
#endif
