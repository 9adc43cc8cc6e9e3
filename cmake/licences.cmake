# The licences of what a wheel carries beside Sluice, which whoever hands it on must hand on too:
# run while it is installed, with
#   LICENCES   the folder to be made: INDEX.txt, a text for each Debian package, and the common
#              licences that these speak of
#   CARRIED    the libraries copied into the wheel, under the names that they have here
#   COMPILED   Debian packages whose code is compiled in: headers
#   TEXTS      further texts (name=path), of what comes from elsewhere
#   REQUIRED   a text that isn't found is an error; otherwise INDEX.txt says that it is missing, and
#              the wheel is for one's own use

set(common /usr/share/common-licenses)

# PACKAGE: what LIBRARY was installed from. dpkg may know it by the path before /lib became a link.
function(sluice_package_of LIBRARY PACKAGE)
  string(REGEX REPLACE "^/usr/" "/" without_usr "${LIBRARY}")
  foreach(path IN ITEMS "${LIBRARY}" "${without_usr}")
    execute_process(COMMAND dpkg-query --search "${path}" OUTPUT_VARIABLE found ERROR_QUIET
                    RESULT_VARIABLE failed)
    if(failed STREQUAL "0" AND found MATCHES "^([^:, \n]+)")
      set(${PACKAGE} ${CMAKE_MATCH_1} PARENT_SCOPE)
      return()
    endif()
  endforeach()
  sluice_licence_missing("no Debian package has ${LIBRARY}, so its licence isn't known")
  set(${PACKAGE} "" PARENT_SCOPE)
endfunction()

function(sluice_licence_missing WHY)
  if(REQUIRED)
    message(FATAL_ERROR
      "A wheel needs the licence of everything it carries: ${WHY}. Build it on Debian, with the "
      "packages of scripts/debian-packages.txt (of CUDA, SLUICE_CUDA_LICENCE is the path), or, "
      "for yourself only, without SLUICE_LICENCES_REQUIRED")
  endif()
  message(WARNING "The wheel is not to be handed on: ${WHY}")
  file(APPEND "${LICENCES}/INDEX.txt" "MISSING: ${WHY}\n")
endfunction()

function(sluice_copy_licence FROM NAME)
  if(NOT EXISTS "${FROM}")
    sluice_licence_missing("${FROM} does not exist")
    return()
  endif()
  file(REAL_PATH "${FROM}" real)
  file(COPY_FILE "${real}" "${LICENCES}/${NAME}.txt")
endfunction()

# The text of PACKAGE, and the common licences that it speaks of.
function(sluice_add_package WHAT PACKAGE)
  execute_process(COMMAND dpkg-query --show "--showformat=\${Version}" ${PACKAGE}
                  OUTPUT_VARIABLE version ERROR_QUIET)
  if(NOT EXISTS "${LICENCES}/${PACKAGE}.txt")
    sluice_copy_licence(/usr/share/doc/${PACKAGE}/copyright ${PACKAGE})
  endif()
  if(NOT EXISTS "${LICENCES}/${PACKAGE}.txt")
    return()
  endif()
  file(APPEND "${LICENCES}/INDEX.txt" "${WHAT}: ${PACKAGE}.txt (Debian's ${PACKAGE} ${version})\n")
  file(READ "${LICENCES}/${PACKAGE}.txt" text)
  string(REGEX MATCHALL "common-licenses/[A-Za-z0-9.-]*[A-Za-z0-9]" named "${text}")
  foreach(licence IN LISTS named)
    get_filename_component(licence "${licence}" NAME)
    if(NOT EXISTS "${LICENCES}/${licence}.txt")
      sluice_copy_licence(${common}/${licence} ${licence})
    endif()
  endforeach()
endfunction()

file(REMOVE_RECURSE "${LICENCES}")
file(MAKE_DIRECTORY "${LICENCES}")
file(WRITE "${LICENCES}/INDEX.txt"
     "What this wheel carries beside Sluice, and its licences. What is in ${common} elsewhere is "
     "here too.\n\n")
foreach(library IN LISTS CARRIED)
  get_filename_component(name "${library}" NAME)
  file(REAL_PATH "${library}" real)
  sluice_package_of("${real}" package)
  if(package)
    sluice_add_package("libs/${name}" ${package})
  endif()
endforeach()
foreach(package IN LISTS COMPILED)
  sluice_add_package("compiled in" ${package})
endforeach()
foreach(text IN LISTS TEXTS)
  string(REGEX MATCH "^([^=]+)=(.*)$" parts "${text}")
  set(name ${CMAKE_MATCH_1})
  sluice_copy_licence("${CMAKE_MATCH_2}" ${name})
  if(EXISTS "${LICENCES}/${name}.txt")
    file(APPEND "${LICENCES}/INDEX.txt" "compiled in: ${name}.txt\n")
  endif()
endforeach()
