# What `cmake --install` puts where: for those who embed Sluice, the library, its headers, a CMake
# package and a pkg-config file, and the command; for a wheel (scikit-build-core sets SKBUILD), the
# library and the command inside the Python package.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

if(SKBUILD)
  # The library as one plain file, since a wheel holds no links, and what it needs that a bare machine
  # lacks. RPATH rather than RUNPATH, because by it also what lies in libs/ finds its own needs.
  target_link_options(sluice PRIVATE -Wl,--disable-new-dtags)
  target_link_options(sluice_cli PRIVATE -Wl,--disable-new-dtags)
  set_target_properties(sluice PROPERTIES INSTALL_RPATH "$ORIGIN/libs")
  set_target_properties(sluice_cli PROPERTIES INSTALL_RPATH "$ORIGIN/../libs")
  install(TARGETS sluice LIBRARY DESTINATION sluice)
  install(TARGETS sluice_cli RUNTIME DESTINATION sluice/bin)
  install(CODE [[
    file(GET_RUNTIME_DEPENDENCIES RESOLVED_DEPENDENCIES_VAR found
         LIBRARIES "$<TARGET_FILE:sluice>" EXECUTABLES "$<TARGET_FILE:sluice_cli>"
         PRE_EXCLUDE_REGEXES "^ld-linux" "^lib(c|m|dl|rt|pthread|stdc\\+\\+|gcc_s)\\.so")
    foreach(library IN LISTS found)  # under the name that is asked for: links would become copies
      get_filename_component(name "${library}" NAME)
      file(REAL_PATH "${library}" library)
      file(MAKE_DIRECTORY "${CMAKE_INSTALL_PREFIX}/sluice/libs")
      file(COPY_FILE "${library}" "${CMAKE_INSTALL_PREFIX}/sluice/libs/${name}" ONLY_IF_DIFFERENT)
    endforeach()]])
  # After the libraries: it says of each that was found where it is from.
  set(texts "")
  if(SLUICE_HAS_CUDA)  # of its static runtime; of toolkits made of wheels, the second
    file(GLOB found "${CUDAToolkit_BIN_DIR}/../EULA.txt"
         "${CUDAToolkit_BIN_DIR}/../dist-info/nvidia_cuda_runtime-*/licenses/License.txt")
    list(APPEND found "${CUDAToolkit_BIN_DIR}/../EULA.txt")
    list(GET found 0 found)
    if(NOT SLUICE_CUDA_LICENCE)  # may be given
      set(SLUICE_CUDA_LICENCE "${found}")
    endif()
    set(texts "cuda-runtime=${SLUICE_CUDA_LICENCE}")
  endif()
  install(CODE "
    set(LICENCES \"${SKBUILD_METADATA_DIR}/licenses/third-party\")
    set(CARRIED \${found})
    set(COMPILED nlohmann-json3-dev libcli11-dev)
    set(TEXTS \"${texts}\")
    set(REQUIRED ${SLUICE_LICENCES_REQUIRED})
    include(\"${CMAKE_CURRENT_LIST_DIR}/licences.cmake\")")
  install(PROGRAMS tools/launcher.py DESTINATION ${SKBUILD_SCRIPTS_DIR} RENAME sluice)
  return()
endif()

file(STRINGS ${PROJECT_SOURCE_DIR}/offload/sluice.h abi REGEX "^#define SLUICE_ABI_VERSION ")
string(REGEX MATCH "[0-9]+$" abi "${abi}")
set_target_properties(sluice PROPERTIES SOVERSION ${abi})
set_target_properties(sluice_cli PROPERTIES INSTALL_RPATH "$ORIGIN/../${CMAKE_INSTALL_LIBDIR}")

install(TARGETS sluice EXPORT sluice-targets
        LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
        INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
# The command, if it was built: who embeds the library (scripts/setup --library) needs none.
install(TARGETS sluice_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} OPTIONAL)
install(CODE [[
  if(NOT EXISTS "$<TARGET_FILE:sluice_cli>")
    message(STATUS "Not installed, since it is not built: the command (target sluice_cli)")
  endif()]])
install(FILES offload/sluice.h offload/sluice.hpp offload/sluice_checkpoint.h
        DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/sluice)
install(FILES comm/comm_table.h
        DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/sluice RENAME sluice_comm.h)

set(package ${CMAKE_INSTALL_LIBDIR}/cmake/sluice)
install(EXPORT sluice-targets NAMESPACE sluice:: DESTINATION ${package})
configure_package_config_file(cmake/sluice-config.cmake.in
                              ${PROJECT_BINARY_DIR}/package/sluice-config.cmake
                              INSTALL_DESTINATION ${package} NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/package/sluice-config-version.cmake
                                 COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/package/sluice-config.cmake
              ${PROJECT_BINARY_DIR}/package/sluice-config-version.cmake
        DESTINATION ${package})

file(RELATIVE_PATH SLUICE_PC_PREFIX
     ${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX})
string(REGEX REPLACE "/$" "" SLUICE_PC_PREFIX "${SLUICE_PC_PREFIX}")
configure_file(cmake/sluice.pc.in ${PROJECT_BINARY_DIR}/package/sluice.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/package/sluice.pc
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
