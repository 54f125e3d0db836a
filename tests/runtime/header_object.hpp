// What header_object.cpp offers: the script on a cache of the headers.
#pragma once

#include <string>

#include "script.hpp"

script::Record header_object(const std::string& scheme);
