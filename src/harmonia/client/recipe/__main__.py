"""`python -m harmonia.client.recipe`: run the recipe that the command line or the environment names."""

from harmonia.client.recipe.runner import main

if __name__ == "__main__":
    main()
